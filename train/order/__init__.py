"""Orders in which rows are served, by the name that [train] shuffle takes."""

from train.order.base import Order, Segment, Window, default_window_blocks
from train.order.global_permutation import GlobalPermutation
from train.order.mixing_buffer import MixingBuffer
from train.order.windows import ShuffledWindows

ORDERS: dict[str, type[Order]] = {
    "windows": ShuffledWindows,
    "mixing-buffer": MixingBuffer,
    "global": GlobalPermutation,
}

__all__ = ["ORDERS", "GlobalPermutation", "MixingBuffer", "Order", "Segment", "ShuffledWindows", "Window",
           "default_window_blocks"]

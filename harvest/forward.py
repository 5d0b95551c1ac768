"""Running the cut model over a batch, and bringing the wanted rows to the CPU as bf16."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from harvest.model import CutModel
from harvest.units import Piece
from shared.errors import RecipeError

_EXPONENT = 0x7F80
"""The exponent bits of a bfloat16."""


@dataclass(frozen=True)
class Captured:
    """The kept rows of a batch, layer by layer, on their way to the CPU."""

    pieces: list[Piece]
    rows: dict[int, torch.Tensor]
    """bfloat16 ``[kept rows, d_model]`` a layer, piece after piece."""
    norms: dict[int, torch.Tensor]
    """float32 ``[kept rows]`` a layer: L2 norm of the bf16 row."""
    nonfinite: dict[int, torch.Tensor]
    """bool ``[kept rows]`` a layer: whether the bf16 row holds a NaN or an infinity."""
    copied: "torch.cuda.Event | None" = None
    """Done when the asynchronous copies are."""

    def wait(self) -> None:
        """Wait until the rows are on the CPU."""
        if self.copied is not None:
            self.copied.synchronize()


class Forward:
    """The model with hooks on the wanted decoder layers.

    Hooks read what a decoder layer returns, before any final norm; ``hidden_states[-1]`` would be after it.
    Batches are right-padded and run without attention mask and without cache: a causal model never looks
    right, so no conversation sees another or its padding, exactly.
    """

    def __init__(self, cut: CutModel, layers: Sequence[int], device: torch.device) -> None:
        self._model = cut.model
        self._device = device
        self._layers = tuple(layers)
        self._outputs: dict[int, torch.Tensor] = {}
        self.num_halved = 0
        """Batches that did not fit in memory and were halved."""
        for layer in self._layers:
            cut.layers[layer].register_forward_hook(self._keep(layer))

    def _keep(self, layer: int) -> Any:
        def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
            self._outputs[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def run(self, batch: Sequence[Piece], ids: npt.NDArray[np.int64]) -> list[Captured]:
        """Run one batch; one that does not fit in memory runs in halves.

        Args:
            ids: right-padded token ids ``[sequences, longest]``.

        Raises:
            RecipeError: one sequence alone does not fit.
        """
        try:
            return [self._run(list(batch), ids)]
        except torch.OutOfMemoryError:
            self._outputs.clear()
        torch.cuda.empty_cache()
        if len(batch) == 1:
            raise RecipeError(
                f"A conversation of {len(batch[0])} tokens does not fit in the device's memory. "
                "Cut conversations shorter in a new cache: --set harvest.max_length=4096"
            )
        self.num_halved += 1
        middle = len(batch) // 2
        first = self.run(batch[:middle], ids[:middle])
        return first + self.run(batch[middle:], ids[middle:, : len(batch[middle])])

    @torch.inference_mode()
    def _run(self, batch: list[Piece], ids: npt.NDArray[np.int64]) -> Captured:
        is_cuda = self._device.type == "cuda"
        tokens = torch.from_numpy(ids)
        if is_cuda:
            tokens = tokens.pin_memory()
        self._model(input_ids=tokens.to(self._device, non_blocking=True), use_cache=False)
        kept = torch.from_numpy(_kept_slots(batch, ids.shape[1]))
        kept = kept.to(self._device, non_blocking=True)
        rows, norms, nonfinite = {}, {}, {}
        for layer in self._layers:
            hidden = self._outputs.pop(layer)
            stored = hidden.reshape(-1, hidden.shape[-1])[kept].to(torch.bfloat16)
            norms[layer] = _to_cpu(torch.linalg.vector_norm(stored, dim=1, dtype=torch.float32), is_cuda)
            nonfinite[layer] = _to_cpu(nonfinite_rows(stored), is_cuda)
            rows[layer] = _to_cpu(stored, is_cuda)
        copied = None
        if is_cuda:
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(torch.cuda.current_stream(self._device))  # the default is the current device's stream
        return Captured(batch, rows, norms, nonfinite, copied)


def nonfinite_rows(rows: torch.Tensor) -> torch.Tensor:
    """Which bf16 rows ``[num_rows, d_model]`` hold a NaN or an infinity: bool ``[num_rows]``.

    Exact, by the bits: all eight exponent bits are set in these values and in no others. The norm would not
    do: it overflows for finite rows above 1.8e19 per dimension.
    """
    exponents = rows.view(torch.int16).bitwise_and(_EXPONENT)
    return exponents.amax(dim=1) == _EXPONENT


def _kept_slots(batch: Sequence[Piece], width: int) -> npt.NDArray[np.int64]:
    """Flat positions of the kept rows in a padded batch of ``width`` columns."""
    return np.concatenate([
        np.arange(line * width + piece.keep - piece.start, line * width + len(piece), dtype=np.int64)
        for line, piece in enumerate(batch)
    ])


def _to_cpu(tensor: torch.Tensor, is_cuda: bool) -> torch.Tensor:
    if not is_cuda:
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)

"""How well each order of rows mixes, against independent draws: the table of docs/shuffling.md.

    python -m benchmarks.shuffle_quality [--cache caches/demo] [--rows 4000000] [--batch-size 4096]

An order needs row numbers alone, so a large cache is made up: as many conversations as fill ``--rows``, their lengths
drawn (with replacement) from those of a cache's training conversations. All its rows are kept. Measures are those
that a training prints at its start (`train/shuffle_quality.py`), over 16 batches of the first epoch.
"""

import argparse
import time

import numpy as np

from benchmarks.measuring import save
from shared.format.layout import BLOCK_ROWS
from shared.reading.cache import open_cache
from train.order import ORDERS, Order, Window
from train.order.base import Ints
from train.shuffle_quality import measure_shuffle

_WINDOWS = (512, 2048, 8192)
"""Blocks in memory: a quarter, half and twice the default batch's size."""


class AsStored(Order):
    """Rows as they lie in the cache: what no shuffle gives."""

    reads_once = True

    def offsets(self, epoch: int) -> Ints:
        return np.array([0, self.num_rows], np.int64)

    def window(self, epoch: int, number: int) -> Window:
        return Window(self.kept_in_blocks(self.blocks), np.arange(self.num_rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", default="caches/demo")
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch-size", type=int, default=4096)
    arguments = parser.parse_args()
    cache = open_cache(arguments.cache)
    offset = made_up_conversations(cache.conversation_offset, cache.num_train_rows, arguments.rows)
    orders: list[tuple[str, type[Order], int]] = [("none", AsStored, _WINDOWS[0])]
    orders += [(name, ORDERS[name], blocks) for blocks in _WINDOWS for name in ("mixing-buffer", "windows")]
    orders += [("global", ORDERS["global"], _WINDOWS[1])]
    lines = ["| order | rows in memory | conversations in a batch | same-conversation pairs, x independent draws "
             "| source distance, x independent draws |", "|---|---|---|---|---|"]
    figures = []
    for name, kind, blocks in orders:
        started = time.thread_time()
        order = kind(np.ones(arguments.rows, bool), window_blocks=blocks, data_seed=0)
        quality = measure_shuffle(order, arguments.batch_size, offset, num_batches=16)
        held = blocks * BLOCK_ROWS if name in ORDERS else 0
        figures.append({"order": name, "rows_in_memory": held, "cpu_seconds": time.thread_time() - started,
                        **vars(quality)})
        lines.append(f"| {name} | {f'{held:,}' if name not in {'none', 'global'} else 'any'} "
                     f"| {quality.conversations:,.0f} | {quality.same_conversation_pairs:.2f} "
                     f"| {quality.source_distance:.2f} |")
        print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    save("shuffle_quality", {"rows": arguments.rows, "conversations": len(offset) - 1,
                             "batch_size": arguments.batch_size, "orders": figures, "table": lines})


def made_up_conversations(offset: Ints, num_train_rows: int, num_rows: int) -> Ints:
    """Offsets of conversations that fill ``num_rows``, with lengths drawn from those before ``num_train_rows``."""
    lengths = np.diff(offset[offset <= num_train_rows])
    drawn = np.random.default_rng(0).choice(lengths, size=2 * num_rows // max(1, int(lengths.mean())))
    ends = np.cumsum(drawn)
    return np.concatenate([[0], ends[ends < num_rows], [num_rows]]).astype(np.int64)


if __name__ == "__main__":
    main()

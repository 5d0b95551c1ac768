"""The small harvest through `harvest.run.fill` itself: its threads, its claims, its errors, its clean-up."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch

from harvest import unit_writer
from harvest.device import find_device
from harvest.forward import Captured
from harvest.run import fill
from shared.format.commits import Record, commit
from shared.format.plan import read_passes, read_plan
from shared.writing.claims import Work
from shared.writing.writers import recover, writer_folder
from tests.crash.small_harvest import norms_of, rows_of


class Numbers:
    """Stands in for the model: gives each row the numbers that `rows_of` has for it."""

    num_halved = 0

    def __init__(self, geometry, layers):
        self._rows = {layer: rows_of(geometry, layer) for layer in layers}

    def run(self, batch, ids):
        rows, norms = {}, {}
        for layer, values in self._rows.items():
            numbers = [number for piece in batch for number in range(piece.keep, piece.stop)]
            rows[layer] = torch.from_numpy(values[numbers]).view(torch.bfloat16)
            norms[layer] = torch.from_numpy(norms_of(values[numbers]))
        finite = {layer: torch.zeros(len(norm), dtype=torch.bool) for layer, norm in norms.items()}
        return [Captured(list(batch), rows, norms, finite)]


def harvest_with_threads(cache: Path, acknowledge: Callable[[int], object] = lambda unit: None) -> None:
    """Fill a planned cache as the command does, with numbers in place of a model.

    Args:
        acknowledge: called, in the committing thread, with each unit that was committed.
    """
    plan = read_plan(cache)
    recover(cache)

    def told(cache: Path, record: Record) -> bool:
        won = commit(cache, record)
        if won:
            acknowledge(record.unit)
        return won

    with patch.object(unit_writer, "commit", told), writer_folder(cache) as writer:
        [pass_] = read_passes(cache).values()
        todo = [Work(unit) for unit in plan.geometry.fill_order(None)]
        model = plan.model_copy(update={"identity": {**plan.identity, "model": {"name": "numbers"}}})
        fill(cache, model, pass_, todo, Numbers(plan.geometry, pass_.layers), find_device("cpu"), writer)

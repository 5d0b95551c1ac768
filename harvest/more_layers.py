"""Another pass over a cache's rows: more layers, in the units that are there, beside what is there."""

from collections.abc import Sequence
from pathlib import Path

from harvest.device import Device
from harvest.from_plan import compute
from harvest.model import ModelSource
from harvest.opening import make_pass
from shared import storage
from shared.errors import RecipeError, TryAgainError
from shared.format.commits import read_records
from shared.format.plan import Pass, Plan, read_passes
from shared.upkeep.activity import note_start
from shared.writing.claims import Work
from shared.writing.writers import recover, writer_folder


def pass_of_layers(cache: Path, plan: Plan, layers: Sequence[int], compute_dtype: str | None = None) -> Pass:
    """The pass that harvests these layers: as the cache's first one does, but for what is said.

    Raises:
        RecipeError: a layer that the model has not, or nothing is harvested yet.
    """
    if not layers:
        raise RecipeError('No layers given. Expected --layers with numbers like "4 20".')
    if (deepest := max(layers)) >= plan.num_layers:
        raise RecipeError(f"Layer {deepest} is out of range: {plan.name_of('model')} has layers 0 to "
                          f"{plan.num_layers - 1}.")
    wanted = sorted(set(layers))
    first = next((entry for entry in read_passes(cache).values() if entry.layers == wanted), None)
    first = first or first_pass(cache)
    return Pass(layers=wanted, compute_dtype=compute_dtype or first.compute_dtype, attention=first.attention)


def first_pass(cache: Path) -> Pass:
    """The pass with most units, which sets the units that others fill; of two such the one of the lower layers.

    Raises:
        RecipeError: nothing is harvested yet.
    """
    passes = read_passes(cache).values()
    sizes = [(len(read_records(cache, entry.pass_id)), entry) for entry in passes]
    most = max((size for size, _ in sizes), default=0)
    if not most:
        raise RecipeError(f"{cache} holds a plan and no activations yet: fill it first, with the layers that you want "
                          "(make harvest).")
    return min((entry for size, entry in sizes if size == most), key=lambda entry: entry.layers)


def add_layers(cache: Path, plan: Plan, wanted: Pass, source: ModelSource, device: Device) -> Pass:
    """Fill the units that the first pass has with another pass; what it has already is not done again.

    Raises:
        SystemExit: 130 or 143 after a signal; the open unit is dropped.
        IdentityError: a layer belongs to a pass that was made otherwise.
        TryAgainError: the disk is full.
    """
    recover(cache)
    there = read_records(cache, first_pass(cache).pass_id)
    with writer_folder(cache) as writer:
        pass_ = make_pass(wanted, cache, plan.geometry, writer)
        done = read_records(cache, pass_.pass_id)
        units = [unit for unit in plan.geometry.fill_order(None) if unit in there and unit not in done]
        if units:
            _check_space(cache, plan, units, len(pass_.layers))
            note_start(cache, writer, pass_.pass_id, sum(map(plan.geometry.train_rows_of, there)))
            compute(cache, plan, pass_, [Work(unit) for unit in units], source, device, writer)
    return pass_


def _check_space(cache: Path, plan: Plan, units: Sequence[int], num_layers: int) -> None:
    needed = sum(plan.geometry.unit_bytes(unit, num_layers) for unit in units)
    if needed > (free := storage.free_bytes(cache)):
        raise TryAgainError(f"Not enough disk for {num_layers} more layers of {cache}: {needed / 1e9:.2f} GB needed, "
                            f"{free / 1e9:.2f} GB free. Free some space, or ask for fewer layers.")

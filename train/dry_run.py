"""``--dry-run``: the SAEs that a recipe asks for, their steps, what they take in memory, and what is read for them."""

from collections.abc import Sequence, Set
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shared.format.layout import BLOCK_ROWS
from shared.reading.cache import Cache
from train.evaluation.held_out import held_out_interval
from train.export.exported import RUN
from train.groups import Group
from train.memory import memory_budget, memory_need, set_need, shared_need
from train.order import ORDERS
from train.statistics import SAMPLE_BLOCKS
from train.training_set import (
    CHECKPOINTS,
    Extent,
    check_saes,
    layer_folder,
    measure_extent,
    peak_lr,
    sets_in_progress,
    states_of,
    turns,
)


def print_plan(cache: Cache, groups: Sequence[Group], runs: Path, device: str, console: Console) -> None:
    """Print a table for each group: what training all of it takes, and which SAEs of it are there. Reads which rows
    there are and their norms, and none of the activations.

    Raises:
        DataError, RecipeError, CorruptError: as the run itself, before it begins.
    """
    total = 0
    for group in groups:
        check_saes(group.saes, cache.d_model, group.train.tensor_parallel)
        extent = measure_extent(cache, group.layer, group.train)
        planned = turns(group.saes, cache.d_model, group.train, extent.window_blocks, device)
        console.print(_table(cache, group, extent, planned, layer_folder(runs, cache, group.layer), device))
        total += _print_costs(cache, group, extent, planned, device, console)
        _print_begun(layer_folder(runs, cache, group.layer), {sae.name for sae in group.saes}, console)
    for layer in dict.fromkeys(group.layer for group in groups):
        asked = {sae.name for group in groups if group.layer == layer for sae in group.saes}
        _print_others(layer_folder(runs, cache, layer), asked, console)
    num_saes = sum(len(group.saes) for group in groups)
    console.print(f"{num_saes} SAE{'s' if num_saes > 1 else ''}, about {_gb(total)} read in all. "
                  "Nothing was trained or written.", highlight=False, soft_wrap=True)


def _table(cache: Cache, group: Group, extent: Extent, planned: Sequence[Sequence[object]], folder: Path,
           device: str) -> Table:
    table = Table(title=f"layer {group.layer} of {cache.path}: {group.train.policy.describe()}", title_justify="left")
    for heading in ("turn", "SAE", "lr", "memory", "in a step", "state"):
        table.add_column(heading, justify="left" if heading in {"SAE", "state"} else "right", no_wrap=True)
    states = states_of(folder, group.saes)
    for number, turn in enumerate(planned):
        if number:
            table.add_section()
        for sae in (sae for sae in group.saes if sae in turn):
            need = memory_need(sae, cache.d_model, group.train, device)
            lr = peak_lr(sae, group.train, extent, cache.d_model)
            warm = "" if sae.warm_start is None else f"  from {sae.recipe['warm_start']['sae']}"
            table.add_row(str(number + 1), sae.name + warm, f"{lr:.2g}", _gb(need.kept), _gb(need.step),
                          states[sae.name])
    return table


def _print_costs(cache: Cache, group: Group, extent: Extent, planned: Sequence[Sequence[object]], device: str,
                 console: Console) -> int:
    """Print steps, memory and bytes of a group; give the bytes."""
    train = group.train
    tokens = extent.num_steps * train.batch_size
    passes = tokens / extent.num_rows
    shared = shared_need(train, cache.d_model, extent.window_blocks)
    most = max(set_need([memory_need(sae, cache.d_model, train, device) for sae in group.saes
                         if sae in turn], shared) for turn in planned)
    block = 2 * BLOCK_ROWS * cache.d_model + 4
    # Orders that do not go along the cache read most of it again for each window.
    windows = 1 if ORDERS[train.shuffle].reads_once else -(-extent.num_rows // (extent.window_blocks * BLOCK_ROWS))
    training = int(len(planned) * passes * windows * extent.num_blocks * block)
    held_out = len(cache.rows(layer=group.layer, split="held_out"))
    # Mean and scale, or their like, are two passes over a sample; held-out rows are sampled once, evaluated once.
    beside = (len(planned) * (2 * min(SAMPLE_BLOCKS, extent.num_blocks) + min(train.held_out_rows, held_out))
              + held_out // BLOCK_ROWS) * block
    for line in (
        f"{extent.num_steps:,} steps of {train.batch_size:,} rows = {tokens:,} tokens, {passes:.2f} passes over "
        f"{extent.num_rows:,} rows",
        f"memory: {_gb(most)} of {_gb(memory_budget(train, device))} on {device}, with {_gb(shared)} for all; "
        + ("all SAEs at once" if len(planned) == 1 else f"{len(planned)} turns")
        + (f"; for each of {train.tensor_parallel} processes" if train.tensor_parallel > 1 else ""),
        f"reads: about {_gb(training)} to train, {_gb(beside)} for statistics and evaluation",
        (f"held-out figures every {held_out_interval(train, extent.num_steps):,} steps"
         if train.held_out_rows and held_out else "no held-out figures"),
    ):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    return training + beside


def _print_begun(folder: Path, asked: Set[str], console: Console) -> None:
    """Print what SAEs of the group go on with that were begun: the rows that were there then, and their steps."""
    for found in sets_in_progress(folder):
        count = sum(member.name in asked and not (folder / member.name / RUN).exists() for member in found.saes)
        if count:
            console.print(f"  {count} begun together: they go on to {found.num_steps:,} steps over the "
                          f"{found.num_rows:,} rows of then, in a turn of their own; the figures above are a new run's",
                          highlight=False, soft_wrap=True)


def _print_others(folder: Path, asked: Set[str], console: Console) -> None:
    """Print the sets that another command, or an earlier recipe, has left begun: nothing else would show them."""
    for found in sets_in_progress(folder):
        left = [member.name for member in found.saes if not (folder / member.name / RUN).exists()]
        if left and not asked & set(left):
            place = folder / CHECKPOINTS / found.set_name
            console.print(f"  begun by another command, {_gb(_folder_bytes(place))} in {place}: {', '.join(left)}. "
                          "That command goes on with them; if nothing shall, remove the folder.", highlight=False,
                          soft_wrap=True)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # who trains them may remove an old checkpoint meanwhile
            total += path.stat().st_size
    return total


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

"""From a recipe to a page: harvest, train, evaluate, report. What is done already is not done again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harvest.device import Device
from harvest.job import Job, prepare
from harvest.opening import open_plan
from harvest.run import harvest
from pipelines.loss.run import Wanted, has_loss, measure_loss, open_model
from pipelines.recipe import WholeRecipe
from pipelines.report import write_report
from shared import storage
from shared.errors import DataError, RecipeError
from shared.format.layout import PLAN
from shared.format.plan import read_plan
from shared.reading.cache import Cache
from shared.writing.writers import remove_cache
from train.config import SAEPlan
from train.evaluation.evaluate import evaluate_saes, not_evaluated, sae_subject
from train.run import train_saes
from train.training_set import layer_folder, start_over

Say = Callable[[str], None]


@dataclass(frozen=True)
class Places:
    """Where a pipeline leaves things."""

    cache: Path
    runs: Path
    """Folder of all runs: this one's are under ``runs/<cache name>/``."""

    @property
    def report(self) -> Path:
        """Folder of the page."""
        return self.runs / self.cache.resolve().name / "report"


@dataclass(frozen=True)
class Result:
    """What a pipeline has made."""

    cache: Cache
    layer: int
    folders: list[Path]
    """Of the SAEs, in the recipe's order."""
    page: Path


def run_recipe(recipe: WholeRecipe, places: Places, device: Device, loss_tokens: int, command: str, say: Say) -> Result:
    """Go from conversations to a page; the same call again goes on where it stopped.

    Args:
        loss_tokens: held-out tokens that the language model is run on with each SAE in it; 0 leaves that out.
        command: what was typed, for the page.
        say: takes lines for the user.

    Raises:
        UserError: anything wrong with the recipe, the model, the data, the disk, or what is there already.
        SystemExit: 130 or 143 after a signal; what was done is kept.
    """
    started = time.monotonic()
    there = read_plan(places.cache) if (places.cache / PLAN).exists() else None
    job = prepare(recipe.harvest, device, there)
    if recipe.layer not in job.layers:
        raise RecipeError(f"[train].layer is {recipe.layer}, but layers {job.layers} are harvested. "
                          f"Train on one of those: --set train.layer={job.layers[0]}")
    saes = recipe.plan(job.d_model)
    say(f"1 of 4  harvest  {job.model.name} on {job.source.name}, layers {job.layers}, into {places.cache}")
    cache = _harvest(job, places.cache, say)
    folder = layer_folder(places.runs, cache, recipe.layer)
    say(f"2 of 4  train    {len(saes)} SAEs on layer {recipe.layer}, into {folder}  ({_minutes(started)})")
    folders = train_saes(cache, recipe.layer, recipe.train, saes, runs=places.runs, device=str(device.device), say=say)
    say(f"3 of 4  evaluate on held-out conversations  ({_minutes(started)})")
    missing = not_evaluated(cache, recipe.layer, folders)
    if missing:
        evaluate_saes(cache, recipe.layer, missing, str(device.device))
    if loss_tokens:
        _evaluate_loss(cache, recipe.layer, folders, job, Wanted(loss_tokens))
    say(f"4 of 4  report   {places.report}  ({_minutes(started)})")
    page = write_report(cache, recipe.layer, folders, places.report, command)
    say(f"done in {_minutes(started)}")
    return Result(cache, recipe.layer, folders, page)


def _evaluate_loss(cache: Cache, layer: int, folders: list[Path], job: Job, wanted: Wanted) -> None:
    """Measure the spliced loss of those SAEs that have none on these tokens."""
    subjects = [sae_subject(cache, layer, folder, str(job.device.device)) for folder in folders]
    missing = [one for one in subjects if not has_loss(cache, layer, one, job.model, wanted)]
    if missing:
        measure_loss(cache, layer, missing, open_model(cache, layer, job.device, source=job.model), wanted)


def _harvest(job: Job, path: Path, say: Say) -> Cache:
    plan = open_plan(job, path)
    held_out = plan.num_rows - plan.num_train_rows
    if held_out == 0:
        raise DataError(f"None of the {plan.num_conversations:,} conversations of {job.source.name} is held out "
                        "(4 % are, by hash), so there would be nothing to measure on. Take more conversations.")
    say(f"  planned {plan.num_train_rows:,} training and {held_out:,} held-out tokens of {plan.num_conversations:,} "
        f"conversations; {job.num_tokens:,} training tokens asked, in units of {plan.geometry.rows_per_unit:,}")
    return harvest(job, path)


def remove_all(recipe: WholeRecipe, places: Places, saes: list[SAEPlan]) -> None:
    """Remove what an earlier run of the recipe has left: its cache, its SAEs and its page. Other runs stay."""
    start_over(places.runs / places.cache.resolve().name / f"layer{recipe.layer}", saes)
    storage.remove_tree(places.report)
    if places.cache.exists():
        remove_cache(places.cache)


def _minutes(started: float) -> str:
    seconds = time.monotonic() - started
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"

"""A set: SAEs that are trained together, and everything about their run that is fixed at its start.

    runs/<cache>/layer<L>/<sae name>/            what is left of each SAE
    runs/<cache>/layer<L>/checkpoints/<set>/     set.json, and the checkpoints while it is being trained

set.json fixes the units, the number of steps and the window size, so that units committed later, or more
memory, do not change a run that is resumed.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError, IdentityError, RecipeError, StorageError
from shared.format.layout import BLOCK_ROWS
from shared.provenance import versions
from shared.reading.cache import Cache
from shared.sealed_json import read_sealed, write_sealed
from train import checkpoint
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength, SAEConfig
from train.config import SAEPlan, TrainConfig
from train.export.exported import RUN
from train.locks import locked
from train.memory import in_turns, memory_budget, memory_need, set_need, shared_need
from train.optimizer import default_lr
from train.order import default_window_blocks
from train.policy import median_norm, only_types, training_mask

SET = "set.json"
CHECKPOINTS = "checkpoints"
_log = logging.getLogger(__name__)


class SetMember(BaseModel):
    """One SAE of a set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    lr: float
    warm_start: str | None = None

    def sae_config(self) -> SAEConfig:
        """Its configuration, validated by its architecture's model."""
        return ARCHITECTURES[self.architecture].Config.model_validate(self.config)


class TrainingSet(BaseModel):
    """The content of set.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: Literal[1] = 1
    cache: str
    cache_id: str
    layer: int
    units: list[int]
    """The committed units that are trained on."""
    num_rows: int
    """Rows that the policy keeps in them."""
    median_norm: float
    """Median norm of their training rows, which the policy's max_norm multiplies."""
    num_steps: int
    window_blocks: int
    train: dict[str, Any]
    """The [train] table."""
    device: str
    threads: int
    deterministic: bool = False
    """Whether it was begun with --deterministic."""
    versions: dict[str, str] = {}
    """What it was begun with: `shared.provenance.versions`."""
    run_id: str = ""
    """Names this run of the set in watchers that keep runs apart; drawn when it began."""
    saes: list[SetMember]

    @property
    def set_name(self) -> str:
        """The name of its folder: a digest of its members' names."""
        return set_name([member.name for member in self.saes])

    def train_config(self) -> TrainConfig:
        """The [train] table, validated."""
        return TrainConfig.model_validate(self.train)

    @property
    def length(self) -> RunLength:
        """Steps and batch size."""
        return RunLength(self.num_steps, self.train_config().batch_size)


def set_name(names: Sequence[str]) -> str:
    """The name of the set of some SAEs."""
    return "set-" + hex_digest(canonical_json(sorted(names)))[:8]


def layer_folder(runs: Path, cache: Cache, layer: int) -> Path:
    """``runs/<cache>/layer<L>``."""
    return runs / cache.name / f"layer{layer}"


def unfinished(folder: Path, cache: Cache, saes: Sequence[SAEPlan]) -> list[SAEPlan]:
    """Those SAEs that have no finished run yet.

    Raises:
        IdentityError: a folder of the same name holds an SAE of another recipe or another cache.
    """
    left = []
    for sae in saes:
        path = folder / sae.name / RUN
        if not path.exists():
            left.append(sae)
            continue
        _check_identity(path, read_sealed(path), cache, sae.recipe)
    return left


def states_of(folder: Path, saes: Sequence[SAEPlan]) -> dict[str, str]:
    """"trained", "begun" or "" for each name of some SAEs of a layer's folder."""
    begun = {member.name for found in sets_in_progress(folder) for member in found.saes}
    return {sae.name: "trained" if (folder / sae.name / RUN).exists() else "begun" if sae.name in begun else ""
            for sae in saes}


def _check_identity(path: Path, found: dict[str, Any], cache: Cache, recipe: dict[str, Any]) -> None:
    if found.get("cache_id") != cache.cache_id:
        raise IdentityError(f"{path.parent} was trained on another cache of this name (cache_id "
                            f"{str(found.get('cache_id'))[:12]}, here {cache.cache_id[:12]}). "
                            "Train with --runs on another folder, or with --fresh in place of it.")
    if found.get("recipe") != recipe:
        raise IdentityError(f"{path.parent} holds an SAE of another recipe. Change its seed, or train with --fresh "
                            "in place of it.")


@dataclass(frozen=True)
class Extent:
    """What a group of SAEs is trained on and for how long."""

    units: list[int]
    median_norm: float
    num_rows: int
    """Rows that the policy keeps."""
    num_blocks: int
    """Blocks of 128 rows that hold them: what is read in a pass."""
    num_steps: int
    window_blocks: int


def measure_extent(cache: Cache, layer: int, train: TrainConfig) -> Extent:
    """Count the rows that the policy keeps among the units that are committed now, and the steps over them.

    Raises:
        DataError: there are no rows to train on. RecipeError: fewer than a batch, or none of the types to calibrate on.
    """
    units = sorted(cache.committed_units(layer))
    median = median_norm(cache, layer, units)
    window_blocks = train.window_blocks or default_window_blocks(train.batch_size, cache.d_model)
    mask = training_mask(cache, layer, train.policy, units, median)
    num_rows = int(mask.sum())
    if not only_types(cache, mask, train.calibration_types).any():
        raise RecipeError(f"[train].calibration_types: of the {num_rows:,} rows that the policy keeps "
                          f"({train.policy.describe()}) none is of {', '.join(train.calibration_types)}, so nothing "
                          "could be calibrated at the end. Name types that it keeps, or leave it out.")
    num_tokens = train.num_tokens if train.num_tokens is not None else int(train.epochs * num_rows)
    num_steps = num_tokens // train.batch_size
    if num_steps < 1:
        raise RecipeError(f"[train]: {num_tokens:,} tokens are fewer than one batch of {train.batch_size:,}. Take a "
                          "smaller train.batch_size, more train.epochs, or harvest more.")
    num_blocks = len(np.unique(np.flatnonzero(mask) // BLOCK_ROWS))
    return Extent(units, median, num_rows, num_blocks, num_steps, window_blocks)


def peak_lr(sae: SAEPlan, train: TrainConfig, extent: Extent, d_in: int) -> float:
    """The learning rate of an SAE at its peak: its own, that of [train], or `default_lr`."""
    return sae.config.lr or train.lr or default_lr(sae.config.width(d_in), extent.num_steps * train.batch_size,
                                                   train.batch_size)


def check_saes(saes: Sequence[SAEPlan], d_in: int, tensor_parallel: int) -> None:
    """Compare the sizes of SAEs with those of the SAEs that they start from, and with the processes that train them.

    Raises:
        RecipeError: they differ, the latents cannot be divided, or fewer are there than shall be active.
    """
    for sae in saes:
        source = sae.recipe.get("warm_start")
        here = (d_in, sae.config.width(d_in))
        asked = sae.config.asked_l0()
        if asked is not None and asked > here[1]:
            raise RecipeError(f"[[sae]]: {sae.name} is to have {asked:g} active latents of {here[1]:,}. Ask for fewer, "
                              "or take a larger expansion or d_sae.")
        if here[1] % tensor_parallel:
            raise RecipeError(f"[train].tensor_parallel: the {here[1]:,} latents of {sae.name} cannot be divided over "
                              f"{tensor_parallel} processes. Give sae.d_sae as a multiple of {tensor_parallel}.")
        if source is not None and (source["d_in"], source["d_sae"]) != here:
            raise RecipeError(f"[[sae]].warm_start: {sae.warm_start!r} has {source['d_sae']:,} latents on inputs of "
                              f"width {source['d_in']:,}, this SAE {here[1]:,} on {here[0]:,}. Leave out expansion and "
                              "d_sae to take the source's width, or start from an SAE of the same model.")


def sets_in_progress(folder: Path) -> list[TrainingSet]:
    """The sets of a layer's folder that were begun and not removed yet, those of fewest SAEs first.

    Raises:
        CorruptError: a set.json is damaged. IdentityError: another version of ours wrote it.
    """
    found = []
    for path in sorted(folder.glob(f"{CHECKPOINTS}/*/{SET}")):
        try:
            found.append(_read_set(path))
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise  # else another process has finished it meanwhile
    return sorted(found, key=lambda one: len(one.saes))


def _read_set(path: Path) -> TrainingSet:
    """A set.json. One that cannot be used may be of any SAE of the layer, so it is never passed over."""
    remedy = f"To give up what its SAEs have done, and begin them anew, remove {path.parent}"
    try:
        content = read_sealed(path)
    except CorruptError as error:
        raise CorruptError(f"{error} {remedy}") from error
    try:
        found = TrainingSet.model_validate(content)
        found.train_config()
        for member in found.saes:
            member.sae_config()
    except (ValidationError, KeyError) as error:
        raise IdentityError(f"{path} is of another version of SAE Granary: finish the training with that version. "
                            f"{remedy}") from error
    return found


def open_sets(folder: Path, cache: Cache, layer: int, train: TrainConfig, saes: Sequence[SAEPlan],
              device: str) -> list[TrainingSet]:
    """Sets that hold each of these unfinished SAEs once, in the order in which they take their turns.

    Sets in progress go on. One that holds SAEs of other processes as well, or more than fit in memory, is divided:
    each part goes on from the same checkpoint. What was not begun yet begins in sets that fit in memory.

    Raises:
        IdentityError: what is in progress was begun on another cache, or by another version. CorruptError: a set.json
            is damaged.
        DataError, RecipeError: as `measure_extent`.
    """
    waiting = {sae.name: sae for sae in saes}
    opened = []
    for found in sets_in_progress(folder):
        left = [member for member in found.saes if not (folder / member.name / RUN).exists()]
        mine = [member for member in left if member.name in waiting]
        for member in mine:
            _check_identity(folder / CHECKPOINTS / found.set_name / SET,
                            {"cache_id": found.cache_id, "recipe": member.recipe}, cache, waiting[member.name].recipe)
        again = [waiting.pop(member.name) for member in mine]
        for turn in turns(again, cache.d_model, train, found.window_blocks, device):
            opened.append(found if len(turn) == len(left) else _divide(folder, found, {sae.name for sae in turn}))
    if waiting:
        extent = measure_extent(cache, layer, train)
        for turn in turns(list(waiting.values()), cache.d_model, train, extent.window_blocks, device):
            opened.append(_begin(folder, cache, layer, train, extent, turn, device))
    return opened


def turns(saes: Sequence[SAEPlan], d_in: int, train: TrainConfig, window_blocks: int,
          device: str) -> list[list[SAEPlan]]:
    """The SAEs that are trained together, turn by turn: as many as fit in memory."""
    needs = [memory_need(sae, d_in, train, device) for sae in saes]
    shared, budget = shared_need(train, d_in, window_blocks), memory_budget(train, device)
    for sae, need in zip(saes, needs, strict=True):
        if set_need([need], shared) > budget:
            _log.warning("%s takes about %.1f GiB to train, and %.1f GiB are planned with. It is tried all the same: "
                         "a smaller width or batch takes less.", sae.name, set_need([need], shared) / 2**30,
                         budget / 2**30)
    return [[saes[place] for place in turn] for turn in in_turns(needs, shared, budget)]


def _begin(folder: Path, cache: Cache, layer: int, train: TrainConfig, extent: Extent, saes: Sequence[SAEPlan],
           device: str) -> TrainingSet:
    """Write the set.json of a new set."""
    members = []
    for sae in saes:
        members.append(SetMember(name=sae.name, architecture=sae.architecture, recipe=sae.recipe,
                                 lr=peak_lr(sae, train, extent, cache.d_model),
                                 config=sae.config.model_dump(mode="json"), warm_start=sae.warm_start))
    begun = TrainingSet(cache=cache.name, cache_id=cache.cache_id, layer=layer, units=extent.units,
                        median_norm=extent.median_norm, num_rows=extent.num_rows, num_steps=extent.num_steps,
                        window_blocks=extent.window_blocks, device=device, train=train.model_dump(mode="json"),
                        threads=torch.get_num_threads(), run_id=uuid4().hex[:8], saes=members,
                        deterministic=torch.are_deterministic_algorithms_enabled(), versions=versions())
    target = folder / CHECKPOINTS / begun.set_name
    storage.remove_tree(target)  # what a killed clean-up left must not be resumed from
    storage.make_folder(target)
    write_sealed(target / SET, begun.model_dump(mode="json"))
    return begun


def _divide(folder: Path, found: TrainingSet, names: set[str]) -> TrainingSet:
    """A set of some of another's SAEs, at the step where the other is; set.json comes last and makes it count."""
    part = found.model_copy(update={"saes": [member for member in found.saes if member.name in names]})
    target = folder / CHECKPOINTS / part.set_name
    storage.remove_tree(target)
    storage.make_folder(target)
    resumed = checkpoint.load_newest(folder / CHECKPOINTS / found.set_name)
    if resumed is not None:
        checkpoint.save(target, resumed.step,
                        {name: tensor for name, tensor in resumed.tensors.items() if name.split("/")[0] in names},
                        {name: size for name, size in resumed.metrics_bytes.items() if name in names})
    write_sealed(target / SET, part.model_dump(mode="json"))
    return part


def remove_finished_sets(folder: Path, given_up: Collection[str] = ()) -> None:
    """Remove the checkpoints of sets whose SAEs are all written, or given up: a kill can leave them behind."""
    for found in sets_in_progress(folder):
        if all(member.name in given_up or (folder / member.name / RUN).exists() for member in found.saes):
            _remove_set(folder, found)


def _remove_set(folder: Path, found: TrainingSet) -> None:
    """Remove a set's folder. set.json goes last: if we are killed, what is left is found by it."""
    path = folder / CHECKPOINTS / found.set_name
    for part in [part for part in path.glob("*") if part.name != SET]:
        storage.remove_tree(part)
    storage.remove_tree(path)


def start_over(folder: Path, saes: Sequence[SAEPlan], asked: Collection[str] = ()) -> None:
    """Remove what is there of some SAEs, finished or in progress. Others that were in a set with them go on in one of
    their own, but for those ``asked`` of other processes to be started over too.

    Raises:
        TryAgainError: another process trains one of those others.
    """
    names = {sae.name for sae in saes}
    for found in sets_in_progress(folder):
        if names & {member.name for member in found.saes}:
            left = {member.name for member in found.saes if not (folder / member.name / RUN).exists()}
            others = left - names - {*asked}
            with locked(folder / CHECKPOINTS, list(others)):
                if others and not (folder / CHECKPOINTS / set_name(list(others)) / SET).exists():
                    _divide(folder, found, others)
                _remove_set(folder, found)
    for name in names:
        storage.remove(folder / name / RUN)  # first: without it nothing here counts as finished
        storage.remove_tree(folder / name)

"""A set: SAEs that are trained together, and everything about their run that is fixed at its start.

    runs/<cache>/layer<L>/<sae name>/            what is left of each SAE
    runs/<cache>/layer<L>/checkpoints/<set>/     set.json, and the checkpoints while it is being trained

set.json fixes the units, the number of steps and the window size, so that units committed later, or more
memory, do not change a run that is resumed.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import IdentityError, RecipeError, TryAgainError
from shared.reading.cache import Cache
from shared.sealed_json import read_sealed, write_sealed
from train.architectures import ARCHITECTURES
from train.architectures.base import RunLength, SAEConfig
from train.config import SAEPlan, TrainConfig
from train.optimizer import default_lr
from train.order import default_window_blocks
from train.policy import median_norm, training_mask

RUN = "run.json"
SET = "set.json"
CHECKPOINTS = "checkpoints"


class SetMember(BaseModel):
    """One SAE of a set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    config: dict[str, Any]
    recipe: dict[str, Any]
    lr: float

    def sae_config(self) -> SAEConfig:
        """Its configuration, validated by its architecture's model."""
        return ARCHITECTURES[self.architecture].Config.model_validate(self.config)


class TrainingSet(BaseModel):
    """The content of set.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: int = 1
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


def _check_identity(path: Path, found: dict[str, Any], cache: Cache, recipe: dict[str, Any]) -> None:
    if found.get("cache_id") != cache.cache_id:
        raise IdentityError(f"{path.parent} was trained on another cache of this name (cache_id "
                            f"{str(found.get('cache_id'))[:12]}, here {cache.cache_id[:12]}). "
                            "Train with --runs on another folder, or with --fresh in place of it.")
    if found.get("recipe") != recipe:
        raise IdentityError(f"{path.parent} holds an SAE of another recipe. Change its seed, or train with --fresh "
                            "in place of it.")


def find_set(folder: Path, cache: Cache, left: Sequence[SAEPlan]) -> TrainingSet | None:
    """The set in progress whose unfinished members are exactly ``left``.

    Raises:
        IdentityError: it was begun on another cache. CorruptError: its set.json is damaged.
    """
    wanted = {sae.name: sae.recipe for sae in left}
    for path in sorted(folder.glob(f"{CHECKPOINTS}/*/{SET}")):
        found = TrainingSet.model_validate(read_sealed(path))
        names = {member.name for member in found.saes if not (folder / member.name / RUN).exists()}
        if names != set(wanted):
            continue
        for member in found.saes:
            if member.name in wanted:
                _check_identity(path, {"cache_id": found.cache_id, "recipe": member.recipe}, cache,
                                wanted[member.name])
        return found
    return None


def begin_set(folder: Path, cache: Cache, layer: int, train: TrainConfig, saes: Sequence[SAEPlan],
              device: str, threads: int) -> TrainingSet:
    """Fix what a new set is trained on and for how long, and write its set.json.

    Raises:
        DataError: there are no rows to train on. RecipeError: fewer than a batch.
    """
    units = sorted(cache.committed_units(layer))
    median = median_norm(cache, layer, units)
    window_blocks = train.window_blocks or default_window_blocks(train.batch_size, cache.d_model)
    mask = training_mask(cache, layer, train.policy, units, median)
    num_rows = int(mask.sum())
    num_tokens = train.num_tokens if train.num_tokens is not None else int(train.epochs * num_rows)
    num_steps = num_tokens // train.batch_size
    if num_steps < 1:
        raise RecipeError(f"[train]: {num_tokens:,} tokens are fewer than one batch of {train.batch_size:,}. Take a "
                          "smaller train.batch_size, more train.epochs, or harvest more.")
    members = []
    for sae in saes:
        d_sae = sae.config.width(cache.d_model)
        lr = sae.config.lr or train.lr or default_lr(d_sae, num_steps * train.batch_size)
        members.append(SetMember(name=sae.name, architecture=sae.architecture, recipe=sae.recipe, lr=lr,
                                 config=sae.config.model_dump(mode="json")))
    begun = TrainingSet(cache=cache.name, cache_id=cache.cache_id, layer=layer, units=units, median_norm=median,
                        num_rows=num_rows, num_steps=num_steps, window_blocks=window_blocks, device=device,
                        train=train.model_dump(mode="json"), threads=threads, saes=members)
    target = folder / CHECKPOINTS / begun.set_name
    storage.remove_tree(target)  # what a killed clean-up left must not be resumed from
    storage.make_folder(target)
    write_sealed(target / SET, begun.model_dump(mode="json"))
    return begun


def remove_finished_sets(folder: Path) -> None:
    """Remove the checkpoints of sets whose SAEs are all written: a kill can leave them behind."""
    for path in folder.glob(f"{CHECKPOINTS}/*/{SET}"):
        found = TrainingSet.model_validate(read_sealed(path))
        if all((folder / member.name / RUN).exists() for member in found.saes):
            storage.remove_tree(path.parent)


def start_over(folder: Path, saes: Sequence[SAEPlan]) -> None:
    """Remove what is there of some SAEs, finished or in progress, with the sets that any of them is in."""
    names = {sae.name for sae in saes}
    for path in folder.glob(f"{CHECKPOINTS}/*/{SET}"):
        if names & {member["name"] for member in read_sealed(path)["saes"]}:
            storage.remove_tree(path.parent)
    for name in names:
        storage.remove(folder / name / RUN)  # first: without it nothing here counts as finished
        storage.remove_tree(folder / name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a layer's folder, so that two processes never train the same SAE.

    Raises:
        TryAgainError: another process holds it.
    """
    storage.make_folder(folder)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgainError(f"Another process trains SAEs of this layer in {folder}. Wait, or stop it.") from None
        yield
    finally:
        os.close(descriptor)

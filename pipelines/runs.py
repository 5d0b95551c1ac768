"""Finished runs and baselines as they lie on disk, read for reports: run.json, eval.json, metrics.jsonl."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.loss.files import read_loss
from shared.errors import CorruptError, DataError, RecipeError, StorageError
from shared.reading.cache import Cache
from shared.sealed_json import read_sealed
from train.evaluation.baselines import BASELINES, read_baselines
from train.evaluation.evaluate import not_evaluated
from train.evaluation.files import EVAL
from train.evaluation.foreign import FOREIGN, read_record
from train.export.exported import RUN
from train.metrics_log import METRICS
from train.training_set import layer_folder

_TITLES = {"standard": "Standard", "gated": "Gated", "jumprelu": "JumpReLU", "topk": "TopK", "batchtopk": "BatchTopK",
           "matryoshka": "Matryoshka"}


@dataclass(frozen=True)
class Evaluated:
    """Something evaluated on the held-out rows: a baseline, or as `FinishedRun` an SAE."""

    evaluation: dict[str, Any]
    """eval.json"""
    loss: dict[str, Any] | None
    """eval_loss.json; None where the language model was not run"""

    @property
    def name(self) -> str:
        """The name, which is the folder's."""
        return str(self.evaluation["sae"])

    @property
    def label(self) -> str:
        """A short name for people: "PCA, k 32"."""
        return str(self.evaluation["baseline"]["label"])

    def figure(self, subset: str, metric: str) -> float | None:
        """One figure of eval.json; None where the subset has no rows or the figure is not defined."""
        value = self.evaluation["subsets"].get(subset, {}).get(metric)
        return None if value is None else float(value)

    def interval(self, subset: str, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a figure; None where it has none."""
        ends = self.evaluation["subsets"].get(subset, {}).get("intervals", {}).get(metric)
        return None if ends is None else (float(ends[0]), float(ends[1]))

    def loss_scope(self, stream: str, scope: str) -> dict[str, Any]:
        """The figures of eval_loss.json for a stream and a scope; empty where there are none."""
        found: dict[str, Any] = (self.loss or {}).get("streams", {}).get(stream, {}).get(scope, {})
        return found


@dataclass(frozen=True)
class FinishedRun(Evaluated):
    """One trained and evaluated SAE."""

    folder: Path
    record: dict[str, Any]
    """run.json, or foreign.json of an SAE that was made elsewhere"""
    metrics: list[dict[str, float | None]]
    """metrics.jsonl, line by line"""

    @property
    def architecture(self) -> str:
        """The architecture as it was trained: "batchtopk", not SAELens's "jumprelu"."""
        return str(self.evaluation["architecture"])

    @property
    def label(self) -> str:
        """A short name for people: "BatchTopK 8x, k 32", "JumpReLU 16x, L0 64, seed 1", "foreign-layers.9-1a2b3c"."""
        if self.is_foreign:
            return self.name
        seed = self.record["recipe"]["sae"]["seed"]
        return self.label_of_any_seed + (f", seed {seed}" if seed else "")

    @property
    def is_foreign(self) -> bool:
        """Whether it was made elsewhere."""
        return "source" in self.evaluation

    @property
    def kind(self) -> str:
        """Architecture and width: "BatchTopK 8x"."""
        width = self.evaluation["d_sae"] / self.evaluation["d_in"]
        return f"{_TITLES.get(self.architecture, self.architecture)} {width:.3g}x"

    @property
    def label_of_any_seed(self) -> str:
        """The label of an SAE of ours without its seed: "BatchTopK 8x, k 32"."""
        sparsity = self.name.split(f"-{self.evaluation['d_sae']}-", 1)[-1].rsplit("-", 2)[0]
        for short, words in (("l0-", "L0 "), ("l1-", "L1 x "), ("k", "k "), ("c", "penalty x ")):
            if sparsity.startswith(short):
                sparsity = words + sparsity.removeprefix(short)
                break
        return f"{self.kind}, {sparsity}"


def foreign_folders(runs: Path, cache: Cache, layer: int) -> list[Path]:
    """The folders of the foreign SAEs of a layer whose figures are of the held-out rows that are there now."""
    found = [path.parent for path in sorted(layer_folder(runs, cache, layer).glob(f"*/{FOREIGN}"))
             if (path.parent / EVAL).exists() and read_record(path.parent)["cache_id"] == cache.cache_id]
    stale = set(not_evaluated(cache, layer, found))
    return [path for path in found if path not in stale]


def finished_folders(runs: Path, cache: Cache, layer: int) -> list[Path]:
    """The folders of the finished SAEs of a layer, by name.

    Raises:
        RecipeError: there are none, nor a foreign one. CorruptError: a run.json is damaged.
    """
    folder = layer_folder(runs, cache, layer)
    found = [path.parent for path in sorted(folder.glob(f"*/{RUN}"))]
    folders = [path for path in found if read_sealed(path / RUN)["cache_id"] == cache.cache_id]
    if not folders and not foreign_folders(runs, cache, layer):
        other = f" ({len(found)} there are from another cache of this name)" if found else ""
        raise RecipeError(f"No finished SAE in {folder}{other}. Train some: make train LAYER={layer} "
                          f"CACHE={cache.path}")
    return folders


def baselines_of(folder: Path, cache: Cache, layer: int) -> list[Evaluated]:
    """The baselines in a layer's folder that were evaluated on the held-out rows that are there now."""
    return [Evaluated(content, read_loss(folder / BASELINES / content["sae"], cache.cache_id))
            for content in read_baselines(cache, layer, folder)]


def read_evaluated(folder: Path) -> Evaluated:
    """An SAE, or a baseline, that was evaluated.

    Raises:
        DataError: it was not evaluated. StorageError: a file cannot be read. CorruptError: it is no JSON.
    """
    if (folder / EVAL).exists() and not any((folder / name).exists() for name in (RUN, FOREIGN)):
        evaluation = _parse(folder / EVAL, _read_text(folder / EVAL))
        return Evaluated(evaluation, read_loss(folder, evaluation["cache_id"]))
    return _read_run(folder)


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Read finished runs, in the order given.

    Raises:
        DataError: a run was not evaluated, for want of held-out rows.
        StorageError: a file cannot be read. CorruptError: it is no JSON.
    """
    return [_read_run(folder) for folder in folders]


def _read_run(folder: Path) -> FinishedRun:
    if not (folder / EVAL).exists():
        raise DataError(f"{folder} has no {EVAL}: its cache has no held-out rows of this layer. Harvest with a "
                        "held-out share to get figures.")
    evaluation = _parse(folder / EVAL, _read_text(folder / EVAL))
    lines = _read_text(folder / METRICS).splitlines() if (folder / METRICS).exists() else []
    return FinishedRun(
        folder=folder,
        record=read_record(folder),
        evaluation=evaluation,
        loss=read_loss(folder, evaluation["cache_id"]),
        metrics=[_parse(folder / METRICS, line) for line in lines if line.strip()],
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{path} is damaged: it is no JSON ({error}).") from error

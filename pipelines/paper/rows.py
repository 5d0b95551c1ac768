"""Finished SAEs as rows of the paper's tables: which cell each belongs to, and its figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.paper.published import Cell, Published, read_published
from pipelines.runs import FinishedRun, read_runs
from shared.errors import RecipeError
from shared.format.layout import PLAN
from shared.format.plan import read_plan
from shared.recipe import find_recipe, read_recipe
from shared.sealed_json import read_sealed
from train.choose_cache import CACHES
from train.config import plan_saes, read_train_config, sae_tables
from train.evaluation.files import EVAL, FORMAT_VERSION
from train.evaluation.foreign import FOREIGN
from train.export.exported import RUN, read_config
from train.export.saelens import CONFIG

"""What the language model loses with the SAE in it, where that was measured."""

PAPER, OWN = "paper", "own"
"""How an SAE was trained: by the recipe `paper` from start to end, or otherwise."""

UNKNOWN = "?"
"""A method that nothing on disk tells."""


@dataclass(frozen=True)
class Row:
    """One SAE as it was measured on one cache's held-out rows."""

    cell: Cell
    architecture: str
    sae: str
    training: str
    """`PAPER` or `OWN`; `UNKNOWN` of an SAE that was made elsewhere."""
    num_tokens: int | None
    """Tokens seen in training."""
    cache: str
    """Name of the cache whose held-out rows it was measured on."""
    measured_on: str
    """Those rows' method: "FAST" are whole conversations, as the paper measures all of its SAEs."""
    published: Published | None
    figures: dict[str, float | None] = field(hash=False)
    """By the names of `FIGURES` and `OF_LOSS`."""


FIGURES = {
    "log2_mse": ("all", "log2_mse_paper"),
    "log2_mse_st": ("special", "log2_mse_paper"),
    "log2_mse_st_without_first": ("special_without_first", "log2_mse_paper"),
    "l0_content": ("content", "l0"),
    "l0_all_without_first": ("all_without_first", "l0"),
    "explained_variance_content": ("content", "explained_variance"),
    "explained_variance_all_without_first": ("all_without_first", "explained_variance"),
}
"""Subset and metric of eval.json behind each figure."""

OF_LOSS = {"ce_recovered": "ce_recovered_mean", "kl": "kl", "delta_ce": "delta_ce"}
"""Figures of eval_loss.json: of the stream "conversations", all tokens without FIRST."""


def find_folders(roots: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The folders of evaluated SAEs in or under ``roots``, and those of finished SAEs without a current eval.json.

    Raises:
        RecipeError: a root is no folder, or nothing is under them.
    """
    found: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise RecipeError(f"There is no folder {str(root)!r}. Expected one with finished SAEs, such as "
                              "runs/<cache>: train some with make train.")
        found |= {path.parent for name in (RUN, FOREIGN) for path in root.rglob(name)}
    evaluated = sorted(folder for folder in found if _is_current(folder / EVAL))
    if not evaluated:
        without = f" ({len(found)} without figures: make evaluate LAYER=...)" if found else ""
        raise RecipeError(f"No evaluated SAE under {' or '.join(map(str, roots))}{without}. Train some: make train "
                          "LAYER=12, or name folders that hold some.")
    return evaluated, sorted(found - set(evaluated))


def _is_current(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["format_version"] == FORMAT_VERSION)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_rows(folders: Sequence[Path]) -> list[Row]:
    """Rows of evaluated SAEs, by cell, architecture and name.

    Raises:
        UserError: a file is damaged.
    """
    runs = read_runs(folders)
    methods = {run.record["cache_id"]: method_of(_identity(run.folder), run.evaluation["subsets"])
               for run in runs if "source" not in run.record}
    published = read_published()
    rows = [_row(run, methods, published) for run in runs]
    return sorted(rows, key=lambda row: (row.cell, row.architecture, row.sae, row.cache))


def _row(run: FinishedRun, methods: Mapping[str, str], published: Mapping[tuple[Cell, str], Published]) -> Row:
    record, evaluation = run.record, run.evaluation
    trained_in = Path(record.get("folder", run.folder))  # of one that is judged on another cache than its own
    identity, trained = _identity(trained_in), record
    if "source" in record:
        trained = read_sealed(trained_in / RUN) if (trained_in / RUN).exists() else {}
    own = trained.get("cache_id", "")
    # What it was trained on: told by its own figures, which may not be among those that are listed.
    method = methods.get(own) or method_of(identity, _subsets(trained_in / EVAL))
    model = str((identity.get("model") or {}).get("name") or record.get("made_for", {}).get("model") or UNKNOWN)
    cell = Cell(model.rstrip("/").rsplit("/", 1)[-1], int(evaluation["layer"]),
                evaluation["d_sae"] / evaluation["d_in"], method)
    architecture = str(trained.get("architecture", record["architecture"]))
    loss = run.loss_scope("conversations", "all_without_first")
    return Row(
        cell=cell, architecture=architecture, sae=str(trained.get("name", run.name)),
        training=training_of(trained, evaluation["d_in"]),
        num_tokens=trained.get("resolved", {}).get("num_tokens"),
        cache=str(evaluation["cache"]), measured_on=methods.get(evaluation["cache_id"]) or _method_there(evaluation),
        published=published.get((cell, architecture)),
        figures={**{name: run.figure(*where) for name, where in FIGURES.items()},
                 **{name: loss.get(key) for name, key in OF_LOSS.items()}},
    )


def method_of(identity: Mapping[str, Any], subsets: Iterable[str]) -> str:
    """The paper's name for how the rows of a cache were made.

    Args:
        identity: the cache's.
        subsets: names of subsets of its held-out rows, which tell chats from plain text: text has no roles.
    """
    kind = (identity.get("order") or {}).get("kind")
    names = set(subsets)
    if kind == "fast":
        return "FAST"
    if kind not in {"block", "block-masked"} or not names:
        return UNKNOWN
    method = "BT(F)" if names & {"role:user", "role:assistant", "role:system"} else "BT(P)"
    return method if kind == "block" else f"{method}, masked"


def _method_there(evaluation: Mapping[str, Any]) -> str:
    """The method of a cache that no SAE that is listed was trained on, if it still lies under caches/."""
    path = CACHES / evaluation["cache"]
    if not (path / PLAN).exists() or (plan := read_plan(path)).cache_id != evaluation["cache_id"]:
        return UNKNOWN
    return method_of(plan.identity, evaluation["subsets"])


def training_of(record: Mapping[str, Any], d_in: int) -> str:
    """Whether a run.json is one of the recipe `paper`, whatever the seeds and the width."""
    recipe = record.get("recipe")
    if recipe is None:
        return UNKNOWN
    raw = read_recipe(find_recipe("paper"))
    train = read_train_config(raw)
    return PAPER if any(_without_seeds(sae.recipe) == _without_seeds(recipe)
                        for sae in plan_saes(sae_tables(raw, None), train, recipe["layer"], d_in)) else OWN


def _without_seeds(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return {"train": {key: value for key, value in recipe["train"].items() if key != "data_seed"},
            "sae": {key: value for key, value in recipe["sae"].items() if key not in {"seed", "d_sae"}},
            "warm_start": recipe.get("warm_start")}


def _identity(folder: Path) -> dict[str, Any]:
    """The identity of the cache that an SAE was trained on, from its cfg.json; empty where it does not say."""
    if not (folder / CONFIG).exists():
        return {}
    metadata = read_config(folder / CONFIG).get("metadata")
    ours = metadata.get("sae_granary") if isinstance(metadata, dict) else None
    identity = ours.get("identity") if isinstance(ours, dict) else None
    return identity if isinstance(identity, dict) else {}


def _subsets(path: Path) -> list[str]:
    return list(json.loads(path.read_text(encoding="utf-8"))["subsets"]) if _is_current(path) else []

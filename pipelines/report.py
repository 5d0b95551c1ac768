"""The page of a run: one HTML file that needs nothing else, with tables, plots, a conversation and latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import plots
from pipelines.contexts import (
    MAX_ROWS,
    MIN_FIRINGS,
    NUM_CONTEXTS,
    Firings,
    ShownLatent,
    choose_latents,
    count_firings,
    held_out_rows,
    show_latents,
)
from pipelines.conversation_view import choose_conversation, show_conversation
from pipelines.figures_table import figure_rows
from pipelines.runs import FinishedRun, baselines_of, read_runs
from shared import storage
from shared.format.tokens import TokenClass
from shared.provenance import versions
from shared.reading.cache import Cache
from shared.showing.page import render
from train.export import load_sae
from train.policy import TokenPolicy

PAGE = "index.html"
PLOT = "explained_variance_l0.png"
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class LayerNorms:
    """Median norms of a layer's held-out rows: a sink shows as a position 0 far above the rest."""

    layer: int
    first: float
    others: float


def write_report(cache: Cache, layer: int, folders: Sequence[Path], page_folder: Path, command: str) -> Path:
    """Write the page of some finished SAEs of a layer, and the first plot beside it as PNG.

    Args:
        folders: of the SAEs, in the order they are shown.
        command: what was typed to get here.

    Returns:
        The path of the page.

    Raises:
        DataError: nothing is held out, so there are no figures.
    """
    runs = read_runs(folders)
    described = next((run for run in runs if run.architecture == "batchtopk"), runs[0])
    firings, latents = _latents(cache, layer, described)
    scatter = plots.explained_variance_l0(runs)
    columns = [*runs, *baselines_of(folders[0].parent, cache, layer)]
    page = render(
        _TEMPLATES, "report.html",
        runs=runs,
        columns=columns,
        rows=figure_rows(columns),
        facts=_facts(cache, layer, runs),
        command=command,
        versions=versions(),
        norms=[_norms(cache, each) for each in cache.layers],
        plots={
            "scatter": plots.as_data_uri(scatter),
            "classes": plots.as_data_uri(plots.explained_variance_by_class(runs)),
            "training": plots.as_data_uri(plots.training_curves(runs)),
        },
        conversation=show_conversation(cache, choose_conversation(cache)),
        described=described,
        latents=latents,
        latent_rows=len(firings.rows),
        policy=_policy_words(runs[0].record["policy"]),
        has_loss=any(run.loss for run in runs),
        dead_held_out=any(run.evaluation["latents"]["dead_held_out"] is not None for run in runs),
        plot_file=PLOT,
        limits={"min_firings": MIN_FIRINGS, "num_contexts": NUM_CONTEXTS, "max_rows": MAX_ROWS},
    )
    storage.make_folder(page_folder)
    plots.write_png(scatter, page_folder / PLOT)
    storage.write_file(page_folder / PAGE, page.encode())
    return page_folder / PAGE


def _latents(cache: Cache, layer: int, run: FinishedRun) -> tuple[Firings, list[ShownLatent]]:
    sae = load_sae(run.folder)
    rows = held_out_rows(cache, layer, run.record)
    firings = count_firings(cache, layer, sae, rows)
    return firings, show_latents(cache, layer, sae, firings, choose_latents(firings))


def _facts(cache: Cache, layer: int, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """What was run, in numbers and names."""
    record = runs[0].record
    held_out = cache.rows(layer=layer, split="held_out")
    return {
        "model": cache.identity["model"]["name"],
        "model_revision": cache.identity["model"]["revision"] or "local files",
        "dataset": cache.identity["dataset"]["name"],
        "d_model": cache.d_model,
        "layer": layer,
        "layers": list(cache.layers),
        "other_layers": [each for each in cache.layers if each != layer],
        "train_rows": sum(cache.geometry.train_rows_of(unit) for unit in record["units"]),
        "held_out_rows": len(held_out),
        "held_out_conversations": len(np.unique(cache.conversation(held_out))),
        "cache": str(cache.path),
        "cache_id": cache.cache_id,
        "kept_rows": record["num_rows"],
        "tokens_seen": record["resolved"]["num_tokens"],
        "batch_size": record["resolved"]["train"]["batch_size"],
        "runs": str(runs[0].folder.parent),
    }


def _policy_words(policy: dict[str, Any]) -> str:
    """Which tokens a policy keeps, in plain words where it is the default."""
    validated = TokenPolicy.model_validate(policy)
    if validated == TokenPolicy():
        return (f"all but position 0 and the few whose vector is over {validated.max_norm:g} times as long as the "
                "median")
    return validated.describe()


def _norms(cache: Cache, layer: int) -> LayerNorms:
    rows = cache.rows(layer=layer, split="held_out")[:MAX_ROWS]
    norms = cache.layer(layer).norm(rows)
    first = cache.token_class[rows] == TokenClass.FIRST
    return LayerNorms(layer, _median(norms[first]), _median(norms[~first]))


def _median(values: Any) -> float:
    return float(np.median(values)) if len(values) else float("nan")

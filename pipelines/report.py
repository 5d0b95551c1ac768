"""The page of a run: one HTML file that needs nothing else, with tables, plots, a conversation and latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from pipelines.plots.by_place import by_position, dots
from pipelines.plots.density import densities, density_of
from pipelines.plots.scatter import explained_variance_l0
from pipelines.plots.series import series_of
from pipelines.plots.style import LOWEST, as_data_uri, write_png
from pipelines.plots.training import Training, training_curves
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
    scatter = explained_variance_l0(runs)
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
        plots={"scatter": as_data_uri(scatter), **_plots(runs)},
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
    write_png(scatter, page_folder / PLOT)
    storage.write_file(page_folder / PAGE, page.encode())
    return page_folder / PAGE


def _plots(runs: Sequence[FinishedRun]) -> dict[str, str]:
    """The other plots of the page as data URIs, by name."""
    subsets = runs[0].evaluation["subsets"]
    classes = [(name, f"{name.removeprefix('class:').replace('_', ' ')}  ({figures['num_rows']:,})")
               for name, figures in subsets.items() if name.startswith("class:")]
    positions = [(name, name.removeprefix("position:")) for name in subsets if name.startswith("position:")]
    explained, errors = (series_of(runs, [name for name, _ in positions], metric)
                         for metric in ("explained_variance", "normalised_error"))
    return {
        "classes": as_data_uri(dots(series_of(runs, [name for name, _ in classes], "explained_variance"), classes,
                                    "explained variance (share of 1) of the class's held-out tokens", lowest=LOWEST)),
        "positions": as_data_uri(by_position(explained, errors, positions)),
        "densities": as_data_uri(densities([density_of(run.label, number, run.evaluation["latents"])
                                            for number, run in enumerate(runs)])),
        "training": as_data_uri(training_curves([Training(run.label, number, [run.metrics])
                                                 for number, run in enumerate(runs)])),
    }


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

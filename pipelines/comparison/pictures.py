"""The plots of a comparison's page, drawn from the rows of its CSV files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.comparison.comparison import Comparison
from pipelines.comparison.measure import DifferenceRow, FigureRow
from pipelines.comparison.tables import DensityRow, FrontierRow
from pipelines.plots.by_place import by_position, dots
from pipelines.plots.density import Density, densities
from pipelines.plots.frontier import Curve, FrontierPanel, frontier
from pipelines.plots.series import Point, Series
from pipelines.plots.style import LOWEST, as_data_uri
from pipelines.plots.training import Training, training_curves
from pipelines.runs import FinishedRun
from pipelines.titles import HEADLINE_SUBSETS, METRICS, is_loss, position_subsets, subset_words


@dataclass(frozen=True)
class Picture:
    """A plot with its words."""

    image: str
    """A data URI."""
    description: str
    caption: str


def pictures(comparison: Comparison, rows: Mapping[str, Sequence[Any]]) -> list[Picture]:
    """The plots for which there is something to show, from rows by file name."""
    labels = [one.label for one in comparison.sets]
    made = [_frontier(labels, rows["frontier.csv"]),
            _differences(labels, comparison, rows["differences.csv"]),
            _by_position(labels, rows["by_position.csv"]), _by_class(labels, rows["by_class.csv"]),
            _density(labels, rows["density.csv"]), _training(comparison)]
    return [picture for picture in made if picture is not None]


def _frontier(labels: Sequence[str], rows: Sequence[FrontierRow]) -> Picture | None:
    keys = list(dict.fromkeys((row.subset, row.metric) for row in rows))
    loss = [key for key in keys if is_loss(key[0]) and key[1] == "ce_recovered_mean"]
    second = next((key for key in loss if key[0].endswith(":all_without_first")), loss[0] if loss else None)
    chosen = [key for key in (("content", "explained_variance"), second or ("policy", "explained_variance"))
              if key in keys]
    if not chosen:
        return None
    panels = []
    for subset, metric in chosen:
        own = [row for row in rows if (row.subset, row.metric) == (subset, metric)]
        panels.append(FrontierPanel(subset_words(subset).split(", position 0")[0],
                                    f"{METRICS[metric].title} ({METRICS[metric].unit})", _curves(labels, own)))
    return Picture(as_data_uri(frontier(panels)), "Explained variance, and what is recovered of the loss, against L0",
                   "Up and to the left is better. A mark is a set; small open marks are its seeds; bars are 95 % "
                   "intervals. Sets that differ in their sparsity alone are joined. (frontier.csv)")


def _curves(labels: Sequence[str], rows: Sequence[FrontierRow]) -> list[Curve]:
    curves: dict[str, Curve] = {}
    for row in rows:
        curve = curves.setdefault(row.curve, Curve(row.curve, labels.index(row.set)))
        if row.sae:
            curve.singles.append((row.l0, row.value))
        else:
            curve.points.append((row.l0, Point(row.value, row.low, row.high)))
    return list(curves.values())


def _differences(labels: Sequence[str], comparison: Comparison, rows: Sequence[DifferenceRow]) -> Picture | None:
    metric, against = METRICS["explained_variance"], comparison.against
    common = set(against.values())
    told = {label: label if len(common) == 1 else f"{label} less {other}" for label, other in against.items()}
    series = [Series(told[label], {row.subset: Point(row.difference, row.low, row.high) for row in rows
                             if row.set == label and row.metric == metric.name}, labels.index(label))
              for label in against]
    places = [(subset, subset_words(subset)) for subset in HEADLINE_SUBSETS
              if comparison.is_shown(subset, metric.name)]
    if not any(name in one.points for one in series for name, _ in places):
        return None
    of = common.pop() if len(common) == 1 else "the reference"
    axis = f"{metric.title} less that of {of} ({metric.unit})"
    return Picture(as_data_uri(dots(series, places, axis, zero_line=True)),
                   "Differences of explained variance to the reference by subset, with intervals",
                   f"Explained variance less that of {of}, paired conversation by conversation, with 95 % "
                   "intervals. Right of the line is better. (differences.csv)")


def _by_position(labels: Sequence[str], rows: Sequence[FigureRow]) -> Picture | None:
    places = [(name, name.removeprefix("position:")) for name in position_subsets([row.subset for row in rows])]
    if len(places) < 2:
        return None
    explained, errors = (_series(labels, rows, metric) for metric in ("explained_variance", "normalised_error"))
    return Picture(as_data_uri(by_position(explained, errors, places)),
                   "Error by position in the conversation, with intervals",
                   "Error by position in the conversation; bands or bars are 95 % intervals. An axis is logarithmic "
                   "where one range is far above the rest. Explained variance is centred on the mean of the positions' "
                   "own tokens. (by_position.csv)")


def _by_class(labels: Sequence[str], rows: Sequence[FigureRow]) -> Picture | None:
    classes = list(dict.fromkeys(row.subset for row in rows if row.metric == "explained_variance"))
    if not classes:
        return None
    sizes = {row.subset: row.num_rows for row in reversed(rows)}
    places = [(name, f"{name.removeprefix('class:').replace('_', ' ')}  ({sizes[name]:,})") for name in classes]
    metric = METRICS["explained_variance"]
    figure = dots(_series(labels, rows, metric.name), places, f"{metric.title} ({metric.unit})", lowest=LOWEST)
    return Picture(as_data_uri(figure),
                   "Explained variance by class of token, with intervals",
                   "Explained variance by class of token (in brackets: how many), each centred on its own mean, with "
                   "95 % intervals. (by_class.csv)")


def _series(labels: Sequence[str], rows: Sequence[FigureRow], metric: str) -> list[Series]:
    return [Series(label, {row.subset: Point(row.value, row.low, row.high) for row in rows
                           if (row.set, row.metric) == (label, metric)}, number)
            for number, label in enumerate(labels)]


def _density(labels: Sequence[str], rows: Sequence[DensityRow]) -> Picture | None:
    found = []
    for number, label in enumerate(labels):
        own = [row for row in rows if row.set == label]
        if own:
            never, *bins = own
            found.append(Density(label, number, [never.log10_high, *(row.log10_high for row in bins)],
                                 [row.share_of_latents for row in bins], never.share_of_latents))
    if not found:
        return None
    return Picture(as_data_uri(densities(found)), "Histograms of how often latents are active",
                   "How often latents are active on the held-out tokens that the SAE's policy keeps. (density.csv)")


def _training(comparison: Comparison) -> Picture | None:
    found = [Training(one.label, number, [member.run.metrics for member in one.members
                                          if isinstance(member.run, FinishedRun)])
             for number, one in enumerate(comparison.sets)]
    found = [one for one in found if any(one.runs)]
    if not found:
        return None
    return Picture(as_data_uri(training_curves(found)), "Training curves",
                   "Lines: training batches. Marks: the held-out sample that is measured while training. Losses of "
                   "different architectures contain different penalties. (training.csv)")

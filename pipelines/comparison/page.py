"""The page of a comparison and the CSV files beside it; every number of the page is formatted from a file's row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.comparison import tables
from pipelines.comparison.comparison import UNMATCHED, Comparison
from pipelines.comparison.measure import (
    COUNTS,
    HOLDS_ZERO,
    MATCHED,
    NO_INTERVAL,
    NO_SEEDS,
    OTHER_TOKENS,
    WITHIN_SEEDS,
    DifferenceRow,
    FigureRow,
    MemberRow,
    member_rows,
)
from pipelines.comparison.pictures import pictures
from pipelines.comparison.recipes import commands_of
from pipelines.comparison.sets import SeedSet, seeds_of
from pipelines.comparison.tables import DensityRow, FrontierRow, TrainingRow, as_csv, exact
from pipelines.titles import METRICS, subset_words
from shared import storage
from shared.provenance import versions
from shared.showing.page import render
from train.evaluation.bootstrap import RESAMPLES

PAGE = "index.html"
_TEMPLATES = Path(__file__).parent.parent / "templates"
NOT_DEFINED = "–"


@dataclass(frozen=True)
class Cell:
    """A number on the page."""

    text: str
    exact: str = ""
    """With all digits, as in the CSV file."""
    small: str = ""
    """What stands under it: an interval."""


@dataclass(frozen=True)
class Line:
    """A row of a table on the page."""

    subset: str
    metric: str
    words: str
    """The subset in words."""
    title: str
    unit: str
    cells: list[Cell]
    verdict: str = ""
    counts: bool = False


def write_comparison(comparison: Comparison, folder: Path, command: str) -> Path:
    """Write the page and its CSV files.

    Args:
        command: what was typed to get here.

    Returns:
        The path of the page.

    Raises:
        StorageError, TryAgainError: a file cannot be written.
    """
    measured = comparison.measured
    figures = [row for found in measured for row in found.figures.values()]
    rows: dict[str, tuple[type[Any], Sequence[Any]]] = {
        "figures.csv": (FigureRow, figures),
        "saes.csv": (MemberRow, member_rows(measured)),
        "differences.csv": (DifferenceRow, comparison.differences),
        "frontier.csv": (FrontierRow, tables.frontier_rows(measured)),
        "by_position.csv": (FigureRow, tables.position_rows(measured)),
        "by_class.csv": (FigureRow, tables.class_rows(measured)),
        "density.csv": (DensityRow, tables.density_rows(comparison.sets)),
        "training.csv": (TrainingRow, tables.training_rows(comparison.sets)),
    }
    first = comparison.sets[0].members[0]
    page = render(
        _TEMPLATES, "comparison.html",
        comparison=comparison,
        sets=[_facts(one) for one in comparison.sets],
        layer=first.run.evaluation["layer"],
        num_conversations=len(first.sums.keys),
        num_rows=first.run.evaluation["num_rows"],
        num_saes=sum(len(one.members) for one in comparison.sets),
        figures=_figure_lines(comparison, figures),
        differences=[(label, against, [_difference_line(row) for row in comparison.differences
                                       if row.set == label and comparison.is_shown(row.subset, row.metric)])
                     for label, against in comparison.against.items()],
        pictures=pictures(comparison, {name: found for name, (_, found) in rows.items()}),
        caches=[_cache_facts(comparison, key) for key in dict.fromkeys(
            member.cache_id for one in comparison.sets for member in one.members)],
        files=list(rows),
        words={"counts": COUNTS, "within": WITHIN_SEEDS, "zero": HOLDS_ZERO, "seeds": NO_SEEDS, "none": NO_INTERVAL,
               "others": OTHER_TOKENS},
        resamples=RESAMPLES,
        matched=f"{100 * MATCHED:.0f} %",
        unmatched=UNMATCHED,
        command=command,
        versions=versions(),
    )
    storage.make_folder(folder)
    for name, (kind, found) in rows.items():
        storage.write_file(folder / name, as_csv(kind, found))
    storage.write_file(folder / PAGE, page.encode())
    return folder / PAGE


def _figure_lines(comparison: Comparison, figures: Sequence[FigureRow]) -> list[Line]:
    """A line for each headline figure that any set has, with a cell a set."""
    found = {(row.set, row.subset, row.metric): row for row in figures}
    keys = dict.fromkeys((row.subset, row.metric) for row in figures
                         if comparison.is_shown(row.subset, row.metric))
    lines = []
    for subset, metric in keys:
        kind = METRICS[metric]
        cells = [_figure_cell(found.get((one.label, subset, metric))) for one in comparison.sets]
        lines.append(Line(subset, metric, subset_words(subset), kind.title, kind.unit, cells))
    return lines


def _figure_cell(row: FigureRow | None) -> Cell:
    if row is None:
        return Cell(NOT_DEFINED)
    form = METRICS[row.metric].form
    small = [] if row.low is None or row.high is None else [f"{row.low:{form}} to {row.high:{form}}"]
    small += [] if row.seed_sd is None else [f"seeds ± {row.seed_sd:{form}}"]
    return Cell(format(row.value, form), exact(row.value), "; ".join(small))


def _difference_line(row: DifferenceRow) -> Line:
    kind = METRICS[row.metric]
    ends = (NOT_DEFINED if row.low is None or row.high is None
            else f"{signed(row.low, row.metric)} to {signed(row.high, row.metric)}")
    cells = [
        Cell(format(row.against_value, kind.form), exact(row.against_value)),
        Cell(format(row.value, kind.form), exact(row.value)),
        Cell(signed(row.difference, row.metric), exact(row.difference), ends),
        Cell(NOT_DEFINED if row.seed_sd is None else format(row.seed_sd, kind.form), exact(row.seed_sd)),
    ]
    verdict = row.verdict
    if row.l0_matched == "no" and row.metric != "l0":
        verdict += f"; L0 {row.l0:.1f} against {row.against_l0:.1f}"
    return Line(row.subset, row.metric, subset_words(row.subset), kind.title, kind.unit, cells, verdict,
                row.verdict == COUNTS and row.l0_matched != "no" and row.metric != "l0")


def signed(value: float, metric: str) -> str:
    """A difference with its sign; 0 has none."""
    return format(value, f"+{METRICS[metric].form}") if value else format(0.0, METRICS[metric].form)


def _facts(one: SeedSet) -> dict[str, Any]:
    """What the page says of how a set was made."""
    first = one.members[0]
    record = first.record
    seeds = [seeds_of(member) for member in one.members]
    return {
        "label": one.label,
        "folders": [str(member.folder) for member in one.members],
        "seeds": ", ".join(str(found[0]) for found in seeds if found is not None) or NOT_DEFINED,
        "cache": first.run.evaluation["cache"],
        "tokens": record.get("resolved", {}).get("num_tokens"),
        "dead": [member.record["dead_train"] for member in one.members
                 if member.record.get("dead_train") is not None],
        "d_sae": first.run.evaluation["d_sae"],
        "made": commands_of(one),
        "versions": record.get("versions", {}),
    }


def _cache_facts(comparison: Comparison, key: str) -> dict[str, Any]:
    cache = comparison.caches.get(key)
    member = next(member for one in comparison.sets for member in one.members if member.cache_id == key)
    model = cache.identity.get("model") if cache else None
    data = cache.identity.get("dataset") if cache else None
    return {
        "name": member.run.evaluation["cache"],
        "id": key,
        "path": str(cache.path) if cache else "not looked at",
        "model": model.get("name") if isinstance(model, dict) else model,
        "dataset": data.get("name") if isinstance(data, dict) else data,
        "order": cache.identity.get("order") if cache else None,
    }

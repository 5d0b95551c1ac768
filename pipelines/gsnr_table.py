"""gsnr.json as tables for people: of each subset of rows, checkpoints by streams, a column a group of parameters."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.figures_table import NOT_DEFINED
from train.metrics_log import METRICS

_FIGURES = {"pooled": "pooled: |E g|² / tr Cov(g)", "median": "median over entries of (E g)² / Var g, from 0 on"}

NOTES = (
    "Per row, at fixed weights, of each SAE's own training loss. Pooled ratios are unbiased: where there is no signal "
    "they are 0 on average, and may be negative. docs/metrics.md has the formulas.",
    "A few rows of a large norm can make mean and variance of a gradient by themselves: compare the subsets with and "
    "without position 0 before a difference is put down to how conversations were cut. Streams of other texts differ "
    "in their tokens, too.",
)

_TITLES = {"all": "all rows, position 0 among them", "all_without_first": "all rows but position 0",
           "policy": "the rows that the SAE's token policy keeps"}


def _notes(content: Mapping[str, Any]) -> list[str]:
    estimated = [one["sae"] for one in content["saes"] if one["sparsity_coefficient_from"] == METRICS]
    return [*NOTES, *(f"{name}: the coefficient of its penalty is an estimate from {METRICS}; run.json of a newer "
                      "training has it." for name in estimated)]


def _stream(content: Mapping[str, Any], cache: str) -> str:
    """A cache's name with its order: "demo (fast)"."""
    [order] = [one["order"] for one in content["streams"] if one["cache"] == cache][:1]
    return f"{cache} ({order['kind']})" if order else cache


def _groups(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The groups of parameters of some results, in their order, with "all" last."""
    names = list(dict.fromkeys(name for one in results for name in one["groups"] if name != "all"))
    return [*names, "all"]


def _by_subset(content: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in content["results"]:
        found.setdefault(one["subset"], []).append(one)
    return found


def _with_interval(groups: Mapping[str, Any], group: str, figure: str) -> str:
    value, ends = _figure(groups, group, figure)
    if not value:
        return NOT_DEFINED if value is None else "0"
    return f"{value:.2e}" + ("" if ends is None else f" ({ends[0]:.1e} to {ends[1]:.1e})")


def _in_doubt(groups: Mapping[str, Any], group: str, figure: str) -> str:
    """Short, and in brackets where the interval holds 0."""
    value, ends = _figure(groups, group, figure)
    if not value:
        return NOT_DEFINED if value is None else "0"
    return f"({value:.1e})" if ends is not None and ends[0] <= 0 <= ends[1] else f"{value:.1e}"


def _figure(groups: Mapping[str, Any], group: str, figure: str) -> tuple[float | None, list[float] | None]:
    figures = groups.get(group, {"intervals": {}})
    return figures.get(figure), figures["intervals"].get(figure)


def as_markdown(content: Mapping[str, Any]) -> str:
    """All tables and the notes."""
    lines = [f"# Gradient signal-to-noise ratio, layer {content['layer']}, {content['split']} rows"]
    for subset, results in _by_subset(content).items():
        groups = _groups(results)
        for figure, title in _FIGURES.items():
            shown = [group for group in groups if group != "all" or figure == "pooled"]
            rows = [[f"`{one['sae']}`", _stream(content, one["cache"]), f"{one['num_batches']} x {one['batch_size']:,}",
                     *(_with_interval(one["groups"], group, figure) for group in shown)] for one in results]
            heads = ["weights of", "rows of", "batches", *shown]
            rule = ["---"] * 2 + ["---:"] * (len(heads) - 2)
            lines += ["", f"## {_TITLES[subset]}; {title}", "",
                      *("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))]
    return "\n".join([*lines, "", "- In brackets: 95 % intervals of the jackknife over batches.",
                      *(f"- {note}" for note in _notes(content))]) + "\n"


def print_tables(content: Mapping[str, Any], console: Console) -> None:
    """The same for a terminal; of intervals it only says which hold 0."""
    for subset, results in _by_subset(content).items():
        for figure, title in _FIGURES.items():
            table = Table(title=f"{_TITLES[subset]}; {title}", title_justify="left")
            for head in ("weights of", "rows of"):
                table.add_column(head, overflow="fold")
            groups = [group for group in _groups(results) if group != "all" or figure == "pooled"]
            for group in groups:
                table.add_column(group, justify="right", no_wrap=True)
            for one in results:
                table.add_row(one["sae"], _stream(content, one["cache"]),
                              *(_in_doubt(one["groups"], group, figure) for group in groups))
            console.print(table)
    for note in ("In brackets: not told from 0 (95 % intervals of the jackknife over batches).", *_notes(content)):
        console.print(f"- {note}", highlight=False, soft_wrap=True, markup=False)


_COLUMNS = ("entries", "active_entries", "median", "mean", "pooled", "pooled_halves")


def as_csv(content: Mapping[str, Any]) -> str:
    """A line for each SAE, cache, subset and group, with all digits and the ends of intervals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = [f"{figure}_{end}" for figure in ("median", "mean", "pooled") for end in ("low", "high")]
    writer.writerow(["sae", "cache", "subset", "batch_size", "num_batches", "group", *_COLUMNS, *ends])
    for one in content["results"]:
        for group, figures in one["groups"].items():
            pairs = [figures["intervals"].get(figure) or ("", "") for figure in ("median", "mean", "pooled")]
            writer.writerow([one["sae"], one["cache"], one["subset"], one["batch_size"], one["num_batches"], group,
                             *(figures[column] for column in _COLUMNS), *(end for pair in pairs for end in pair)])
    return text.getvalue()

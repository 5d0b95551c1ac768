"""gsnr.json as tables for people: of each subset of rows, checkpoints by streams, a column a group of parameters."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.figures_table import NOT_DEFINED

_FIGURES = {"pooled": "pooled: |E g|^2 / tr Cov(g)", "median": "median over entries of E[g]^2 / Var[g]"}

NOTES = (
    "Per row, at fixed weights, of each SAE's own training loss; unbiased, so that no signal is 0 on average and may "
    "be negative. In brackets: 95 % intervals of the jackknife over batches. docs/metrics.md has the formulas.",
    "A few rows of a large norm can make mean and variance of a gradient by themselves: compare the subsets with and "
    "without position 0 before a difference is put down to how conversations were cut. Streams of other texts differ "
    "in their tokens, too.",
)

_TITLES = {"all": "all rows, position 0 among them", "all_without_first": "all rows but position 0",
           "policy": "the rows that the SAE's token policy keeps"}


def _groups(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The groups of parameters of some results, in their order, with "all" last."""
    names = list(dict.fromkeys(name for one in results for name in one["groups"] if name != "all"))
    return [*names, "all"]


def _by_subset(content: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for one in content["results"]:
        found.setdefault(one["subset"], []).append(one)
    return found


def _cell(groups: Mapping[str, Any], group: str, figure: str, with_interval: bool) -> str:
    value = groups.get(group, {}).get(figure)
    if value is None:
        return NOT_DEFINED
    ends = groups[group]["intervals"].get(figure)
    return f"{value:.2e}" + (f" ({ends[0]:.1e} to {ends[1]:.1e})" if with_interval and ends else "")


def as_markdown(content: Mapping[str, Any]) -> str:
    """All tables and the notes."""
    lines = [f"# Gradient signal-to-noise ratio, layer {content['layer']}, {content['split']} rows"]
    for subset, results in _by_subset(content).items():
        groups = _groups(results)
        for figure, title in _FIGURES.items():
            shown = [group for group in groups if group != "all" or figure == "pooled"]
            rows = [[f"`{one['sae']}`", one["cache"], f"{one['num_batches']} x {one['batch_size']:,}",
                     *(_cell(one["groups"], group, figure, True) for group in shown)] for one in results]
            heads = ["weights of", "rows of", "batches", *shown]
            rule = ["---"] * 2 + ["---:"] * (len(heads) - 2)
            lines += ["", f"## {_TITLES[subset]}; {title}", "",
                      *("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))]
    return "\n".join([*lines, "", *(f"- {note}" for note in NOTES)]) + "\n"


def print_tables(content: Mapping[str, Any], console: Console) -> None:
    """The same for a terminal, without intervals."""
    for subset, results in _by_subset(content).items():
        groups = _groups(results)
        for figure, title in _FIGURES.items():
            table = Table(title=f"{_TITLES[subset]}; {title}", title_justify="left")
            for head in ("weights of", "rows of"):
                table.add_column(head, overflow="fold")
            for group in groups:
                table.add_column(group, justify="right", no_wrap=True)
            for one in results:
                table.add_row(one["sae"], one["cache"], *(_cell(one["groups"], group, figure, False)
                                                          for group in groups))
            console.print(table)
    for note in NOTES:
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

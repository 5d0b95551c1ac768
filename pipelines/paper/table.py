"""The paper's tables with our SAEs beside the published figures: Markdown, CSV and a terminal's."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median

from rich.console import Console
from rich.table import Table

from pipelines.figures_table import NOT_DEFINED
from pipelines.paper.published import ARCHITECTURES, METHODS, Cell, read_published
from pipelines.paper.rows import FIGURES, OF_LOSS, PAPER, Row

_TITLES = {"standard": "Standard", "jumprelu": "JumpReLU"}

NOTES = (
    "log2 MSE is the paper's eq. 7: the mean over sequences of the mean over a sequence's tokens of the squared error "
    "per dimension, over all tokens; MSE_st is the same of special tokens, position 0 among them, as in the paper. "
    "One step less is half the error. Of several SAEs in a cell the median stands, with their number in brackets.",
    "The paper's headline, an \"MSE\" of 0.6468 for FAST against 5.1985 for BT(P) and 1.5096 for BT(F) (1.5093 in its "
    "table), is log2 MSE_st, of special tokens alone: Standard, Qwen2.5-7B-Instruct, layer 18, 8x. Over all tokens the "
    "same table has 1.389, 2.002 and 1.475 there.",
    "The paper gives no L0, and its JumpReLU figures are those of SAEs that are nearly dense: a lower error with more "
    "active latents is no better SAE. Compare figures of ours at the L0 that stands in the second table.",
    "Position 0 may be an attention sink, whose error outweighs all others': MSE and MSE_st contain it, the columns "
    "\"no pos.0\" do not.",
    "`*`: none of the cell's SAEs here was trained by the recipe `paper`, so the published figure is of another "
    "training. `†`: measured on held-out blocks, the rows of its own cache; the paper measures all SAEs on whole "
    "conversations. To do that: python -m pipelines evaluate --layer L --cache FAST_CACHE --sae runs/.../SAE",
)


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """Of the rows of one cell and architecture those nearest to the paper's: measured on whole conversations where any
    is, then trained by its recipe where any is."""
    chosen = list(rows)
    chosen = [row for row in chosen if row.measured_on == "FAST"] or chosen
    return [row for row in chosen if row.training == PAPER] or chosen


@dataclass(frozen=True)
class _Line:
    """A line of the paper's table."""

    cell: Cell
    texts: list[str]


_HEADINGS = ("log2 MSE", "paper", "log2 MSE_st", "paper", "no pos.0")


def _lines(rows: Sequence[Row], with_published: bool) -> list[_Line]:
    published = read_published()
    cells = {row.cell for row in rows if row.architecture in ARCHITECTURES}
    if with_published:
        cells |= {cell for cell, _ in published}
    lines = []
    for cell in sorted(cells, key=_place):
        texts: list[str] = []
        for architecture in ARCHITECTURES:
            here = best_rows(row for row in rows if (row.cell, row.architecture) == (cell, architecture))
            theirs = published.get((cell, architecture))
            texts += [_median(here, "log2_mse"), _number(theirs.log2_mse if theirs else None, ".2f"),
                      _median(here, "log2_mse_st"), _number(theirs.log2_mse_st if theirs else None, ".2f"),
                      _median(here, "log2_mse_st_without_first")]
        lines.append(_Line(cell, texts))
    return lines


def _place(cell: Cell) -> tuple[str, int, float, int, str]:
    known = METHODS.index(cell.method) if cell.method in METHODS else len(METHODS)
    return cell.model, cell.layer, cell.expansion, known, cell.method


def _median(rows: Sequence[Row], name: str) -> str:
    values = [value for row in rows if (value := row.figures[name]) is not None]
    if not values:
        return NOT_DEFINED
    marks = "" if any(row.training == PAPER for row in rows) else "*"
    marks += "" if rows[0].measured_on == "FAST" else "†"
    return f"{median(values):.2f}{marks}" + (f" ({len(values)})" if len(values) > 1 else "")


_OF_AN_SAE = ("SAE", "layer", "expansion", "method", "training", "tokens", "measured on", "log2 MSE", "log2 MSE_st",
              "no pos.0", "L0, content", "L0, no pos.0", "expl. var., content", "expl. var., no pos.0", "CE recovered",
              "KL")


def _of_an_sae(row: Row) -> list[str]:
    tokens = NOT_DEFINED if row.num_tokens is None else f"{row.num_tokens:,}"
    figures = [_number(row.figures[name], form) for name, form in (
        ("log2_mse", ".2f"), ("log2_mse_st", ".2f"), ("log2_mse_st_without_first", ".2f"), ("l0_content", ".1f"),
        ("l0_all_without_first", ".1f"), ("explained_variance_content", ".3f"),
        ("explained_variance_all_without_first", ".3f"), ("ce_recovered", ".3f"), ("kl", ".3f"))]
    return [row.sae, str(row.cell.layer), f"{row.cell.expansion:g}x", row.cell.method, row.training, tokens,
            f"{row.cache} ({row.measured_on})", *figures]


def as_markdown(rows: Sequence[Row], with_published: bool = False) -> str:
    """All tables, model by model as in the paper, and the notes."""
    parts = ["# The FAST paper's tables (arXiv 2506.07691), with SAEs of ours"]
    lines = _lines(rows, with_published)
    for model in sorted({row.cell.model for row in rows} | {line.cell.model for line in lines}):
        parts.append(f"\n## {model}\n")
        heads = [f"{_TITLES[name]}: {head}" if not number else head for name in ARCHITECTURES
                 for number, head in enumerate(_HEADINGS)]
        here = [line for line in lines if line.cell.model == model]
        if here:
            parts += _markdown(["layer", "expansion", "method", *heads], 3,
                               [[str(line.cell.layer), f"{line.cell.expansion:g}x", line.cell.method, *line.texts]
                                for line in here])
        ours = [row for row in rows if row.cell.model == model]
        if ours:
            parts += ["", *_markdown(_OF_AN_SAE, 7, [[f"`{name}`", *rest] for name, *rest in map(_of_an_sae, ours)])]
    return "\n".join([*parts, "", *(f"- {note}" for note in NOTES)]) + "\n"


def _markdown(heads: Sequence[str], num_words: int, rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table whose first ``num_words`` columns are words, the others numbers."""
    rule = ["---" if number < num_words else "---:" for number in range(len(heads))]
    return ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)]


COLUMNS = ("model", "layer", "expansion", "method", "architecture", "sae", "training", "num_tokens", "cache",
           "measured_on", "published_log2_mse", "published_log2_mse_st", *FIGURES, *OF_LOSS)
"""Of the CSV: a line an SAE, and a cell's published figures where it has some."""


def as_csv(rows: Sequence[Row], with_published: bool = False) -> str:
    """One line an SAE with all digits; with ``with_published`` the cells after them that have no SAE here."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        theirs = ("", "") if row.published is None else (row.published.log2_mse, row.published.log2_mse_st)
        writer.writerow([*_cell(row.cell), row.architecture, row.sae, row.training, row.num_tokens, row.cache,
                         row.measured_on, *theirs, *row.figures.values()])
    if with_published:
        ours = {(row.cell, row.architecture) for row in rows}
        for (cell, architecture), theirs_too in read_published().items():
            if (cell, architecture) not in ours:
                rest = [""] * (len(FIGURES) + len(OF_LOSS))
                writer.writerow([*_cell(cell), architecture, "", PAPER, "", "", "FAST", theirs_too.log2_mse,
                                 theirs_too.log2_mse_st, *rest])
    return text.getvalue()


def _cell(cell: Cell) -> tuple[str, int, str, str]:
    return cell.model, cell.layer, f"{cell.expansion:g}", cell.method


def print_tables(rows: Sequence[Row], with_published: bool, console: Console) -> None:
    """The same tables for a terminal, model by model."""
    for model, group in groupby(_lines(rows, with_published), key=lambda line: line.cell.model):
        table = Table(title=f"{model}: log2 MSE (eq. 7)", title_justify="left")
        for head in ("layer", "exp.", "method"):
            table.add_column(head, no_wrap=True)
        for name in ARCHITECTURES:
            for number, head in enumerate(("MSE", "paper", "MSE_st", "paper", "no pos.0")):
                table.add_column(f"{_TITLES[name]}\n{head}" if not number else f"\n{head}", justify="right",
                                 no_wrap=True)
        for line in group:
            table.add_row(str(line.cell.layer), f"{line.cell.expansion:g}x", line.cell.method, *line.texts)
        console.print(table)
    table = Table(title="the SAEs themselves (EV: explained variance)", title_justify="left")
    heads = ("SAE", "measured on", "MSE", "MSE_st", "st no\npos.0", "L0\ncontent", "L0 no\npos.0", "EV\ncontent",
             "EV no\npos.0", "CE\nrecov.")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right", overflow="fold", no_wrap=number != 0)
    for row in rows:
        name, *_, measured_on, mse, st, without, l0, other_l0, content, other, recovered, _ = _of_an_sae(row)
        table.add_row(name, measured_on, mse, st, without, l0, other_l0, content, other, recovered)
    console.print(table)
    for note in NOTES:
        console.print(f"- {note}", highlight=False, soft_wrap=True, markup=False)


def _number(value: float | None, form: str) -> str:
    return NOT_DEFINED if value is None else format(value, form)

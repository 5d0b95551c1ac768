"""The table of headline figures of some SAEs: a row a figure, a column an SAE, unit and subset in every row."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.runs import Evaluated, FinishedRun
from pipelines.titles import METRICS, SCOPES, STREAMS, subset_words

NOT_DEFINED = "–"


@dataclass(frozen=True)
class FigureRow:
    """One figure of every SAE."""

    title: str
    subset: str
    """Which held-out tokens it is measured on."""
    unit: str
    cells: list[str]
    exact: list[str]
    """The same figures with all digits, as eval.json has them."""
    intervals: list[str]
    """95 % intervals of the same figures; empty where one has none."""


@dataclass(frozen=True)
class _Figure:
    metric: str
    """A name of `pipelines.titles.METRICS`."""
    subset: str
    """Or the scope of the language model's loss."""
    form: str
    """Fewer digits than where SAEs are compared."""


_FIGURES = (
    _Figure("explained_variance", "content", ".3f"),
    _Figure("explained_variance", "policy", ".3f"),
    _Figure("l0", "content", ".1f"),
    _Figure("l0", "policy", ".1f"),
    _Figure("cosine", "content", ".3f"),
    _Figure("shrinkage", "content", ".3f"),
    _Figure("mse", "content", "#.3g"),
    _Figure("log2_mse_paper", "policy", ".2f"),
    _Figure("log2_mse", "special", ".2f"),
    _Figure("log2_mse", "special_without_first", ".2f"),
)

_LOSSES = (
    _Figure("kl", "all_without_first", ".4f"),
    _Figure("kl", "assistant_without_first", ".4f"),
    _Figure("kl", "all", ".4f"),
    _Figure("delta_ce", "all_without_first", ".4f"),
    _Figure("ce_recovered_mean", "all_without_first", ".4f"),
)
"""With the language model (`pipelines.loss`)."""


def figure_rows(runs: Sequence[Evaluated]) -> list[FigureRow]:
    """The rows of the table; every number is eval.json's."""
    rows = []
    for figure in _FIGURES:
        values = [run.figure(figure.subset, figure.metric) for run in runs]
        sizes = {run.evaluation["subsets"].get(figure.subset, {}).get("num_rows") for run in runs}
        size = f" ({sizes.pop():,})" if len(sizes) == 1 and None not in sizes else ""
        rows.append(FigureRow(
            title=METRICS[figure.metric].title,
            subset=subset_words(figure.subset) + size,
            unit=METRICS[figure.metric].unit,
            cells=[NOT_DEFINED if value is None else format(value, figure.form) for value in values],
            exact=["" if value is None else repr(value) for value in values],
            intervals=[_interval(run.interval(figure.subset, figure.metric), figure.form) for run in runs],
        ))
    return [*rows, *_loss_rows(runs), *_dead_rows(runs)]


def _loss_rows(runs: Sequence[Evaluated]) -> list[FigureRow]:
    """Rows of what the language model loses, for each stream that it was run on."""
    rows = []
    for stream, words in STREAMS.items():
        for figure in _LOSSES:
            found = [run.loss_scope(stream, figure.subset) for run in runs]
            sizes = {scope["num_tokens"] for scope in found if scope}
            if not sizes:
                continue
            values = [scope.get(figure.metric) for scope in found]
            size = f" ({sizes.pop():,})" if len(sizes) == 1 else ""
            rows.append(FigureRow(
                title=METRICS[figure.metric].title,
                subset=f"{SCOPES[figure.subset]}, {words}{size}",
                unit=METRICS[figure.metric].unit,
                cells=[NOT_DEFINED if value is None else format(value, figure.form) for value in values],
                exact=["" if value is None else repr(value) for value in values],
                intervals=[_interval(scope.get("intervals", {}).get(figure.metric), figure.form) for scope in found],
            ))
    return rows


def _interval(ends: Sequence[float] | None, form: str) -> str:
    return "" if ends is None else " to ".join(format(end, form) for end in ends)


def _dead_rows(runs: Sequence[Evaluated]) -> list[FigureRow]:
    latents = [run.evaluation["latents"] for run in runs if isinstance(run, FinishedRun)]
    windows = sorted({entry["dead_train_window_tokens"] for entry in latents} - {None})  # None: made elsewhere
    rows = [] if not windows else [_dead_row(runs, "dead_train", "none of the last "
                      + " or ".join(f"{window:,}" for window in windows) + " training tokens")]
    if any(entry["dead_held_out"] is not None for entry in latents):
        counts = sorted({entry["dead_held_out_rows"] for entry in latents})
        rows.append(_dead_row(runs, "dead_held_out", "none of "
                              + " or ".join(f"{count:,}" for count in counts) + " held-out tokens"))
    return rows


def _dead_row(runs: Sequence[Evaluated], key: str, fired_on: str) -> FigureRow:
    counts = [run.evaluation["latents"][key] if isinstance(run, FinishedRun) else None for run in runs]
    return FigureRow(
        title="dead latents",
        subset=f"active on {fired_on}",
        unit="latents (share of all)",
        cells=[NOT_DEFINED if count is None else f"{count:,} ({count / run.evaluation['d_sae']:.1%})"
               for count, run in zip(counts, runs, strict=True)],
        exact=["" if count is None else str(count) for count in counts],
        intervals=["" for _ in counts],
    )


def as_markdown(runs: Sequence[Evaluated]) -> str:
    """The table as Markdown, for a file beside the runs."""
    first = runs[0].evaluation
    lines = [
        f"# Layer {first['layer']} of {first['cache']}: {first['num_rows']:,} held-out tokens",
        "",
        "Content tokens are the text of messages. Ordinary tokens are those that the SAE's token policy keeps "
        "(by default all but position 0 and outliers of the norm). Explained variance is centred on the subset's "
        "own mean. In brackets: 95 % intervals over held-out conversations drawn again.",
        "",
        _line(["figure", "held-out tokens", "unit", *(f"`{run.name}`" for run in runs)]),
        _line(["---", "---", "---", *("---:" for _ in runs)]),
        *(_line([row.title, row.subset, row.unit, *map(_with_interval, row.cells, row.intervals)])
          for row in figure_rows(runs)),
    ]
    return "\n".join(lines) + "\n"


def _with_interval(cell: str, interval: str) -> str:
    return f"{cell} ({interval})" if interval else cell


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"

"""The table of headline figures of some SAEs: a row a figure, a column an SAE, unit and subset in every row."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.runs import Evaluated, FinishedRun

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
    title: str
    subset: str
    metric: str
    unit: str
    form: str


_SUBSET_WORDS = {
    "content": "content tokens",
    "policy": "all ordinary tokens",
    "special": "special tokens, FIRST among them",
    "special_without_first": "special tokens without FIRST",
}

_FIGURES = (
    _Figure("explained variance", "content", "explained_variance", "share of 1", ".3f"),
    _Figure("explained variance", "policy", "explained_variance", "share of 1", ".3f"),
    _Figure("L0", "content", "l0", "active latents per token", ".1f"),
    _Figure("L0", "policy", "l0", "active latents per token", ".1f"),
    _Figure("cosine of x and its reconstruction", "content", "cosine", "mean over tokens", ".3f"),
    _Figure("shrinkage", "content", "shrinkage", "1 is none, less is shrunk", ".3f"),
    _Figure("mse", "content", "mse", "squared activation per dimension", "#.3g"),
    _Figure("log2 mse_paper", "policy", "log2_mse_paper", "log2, mean of conversations' means", ".2f"),
    _Figure("log2 mse", "special", "log2_mse", "log2, per dimension", ".2f"),
    _Figure("log2 mse", "special_without_first", "log2_mse", "log2, per dimension", ".2f"),
)

_SCOPE_WORDS = {
    "all": "all predictions",
    "all_without_first": "all predictions, position 0 left as it is",
    "assistant_without_first": "assistant's words, position 0 left as it is",
}

_STREAM_WORDS = {"conversations": "conversations", "blocks": "packed blocks"}

_LOSSES = (
    _Figure("KL", "all_without_first", "kl", "nats per token", ".4f"),
    _Figure("KL", "assistant_without_first", "kl", "nats per token", ".4f"),
    _Figure("KL", "all", "kl", "nats per token", ".4f"),
    _Figure("CE added", "all_without_first", "delta_ce", "nats per token", ".4f"),
    _Figure("CE recovered, of mean ablation", "all_without_first", "ce_recovered_mean", "share of 1", ".4f"),
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
            title=figure.title,
            subset=_SUBSET_WORDS[figure.subset] + size,
            unit=figure.unit,
            cells=[NOT_DEFINED if value is None else format(value, figure.form) for value in values],
            exact=["" if value is None else repr(value) for value in values],
            intervals=[_interval(run.interval(figure.subset, figure.metric), figure.form) for run in runs],
        ))
    return [*rows, *_loss_rows(runs), *_dead_rows(runs)]


def _loss_rows(runs: Sequence[Evaluated]) -> list[FigureRow]:
    """Rows of what the language model loses, for each stream that it was run on."""
    rows = []
    for stream, words in _STREAM_WORDS.items():
        for figure in _LOSSES:
            found = [run.loss_scope(stream, figure.subset) for run in runs]
            sizes = {scope["num_tokens"] for scope in found if scope}
            if not sizes:
                continue
            values = [scope.get(figure.metric) for scope in found]
            size = f" ({sizes.pop():,})" if len(sizes) == 1 else ""
            rows.append(FigureRow(
                title=figure.title,
                subset=f"{_SCOPE_WORDS[figure.subset]}, {words}{size}",
                unit=figure.unit,
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

"""The data behind a comparison's page, as rows of CSV files: page and files are made of the same objects.

    figures.csv       every figure of every set, with intervals and spread over seeds
    saes.csv          the same of every SAE, as its eval.json has it
    differences.csv   every figure less that of the reference, with paired intervals
    frontier.csv      explained variance and CE recovered beside the L0 of the same tokens
    by_position.csv, by_class.csv, density.csv, training.csv      what the plots of these names show

A number has all its digits; what is not defined is empty.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from pipelines.comparison.measure import FigureRow, Measured
from pipelines.comparison.sets import SeedSet
from pipelines.runs import FinishedRun
from pipelines.titles import is_loss, l0_subset, position_subsets

TRAINING = ("loss", "explained_variance", "l0", "dead_latents", "held_out_explained_variance", "held_out_l0")
"""Figures of metrics.jsonl that are kept."""


@dataclass(frozen=True)
class FrontierRow:
    """A figure of a set, or of one SAE of it, beside the L0 of the same tokens."""

    set: str
    curve: str
    sae: str
    """Its name; nothing of the set as a whole."""
    subset: str
    metric: str
    l0: float
    l0_low: float | None
    l0_high: float | None
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class DensityRow:
    """How many latents of a set are active on a share of the ordinary held-out tokens between two powers of ten."""

    set: str
    log10_low: float | None
    """None of those that are active on no token."""
    log10_high: float
    latents: float
    """Mean over the set's SAEs."""
    share_of_latents: float


@dataclass(frozen=True)
class TrainingRow:
    """A line of an SAE's metrics.jsonl."""

    set: str
    sae: str
    tokens: int
    loss: float | None
    explained_variance: float | None
    l0: float | None
    dead_latents: float | None
    held_out_explained_variance: float | None
    held_out_l0: float | None


def frontier_rows(measured: Sequence[Measured]) -> list[FrontierRow]:
    """Explained variance of content and of ordinary tokens, and CE recovered, each beside its L0."""
    rows = []
    for found in measured:
        for (subset, metric), own in found.figures.items():
            wanted = (metric == "explained_variance" and subset in {"content", "policy"}) or (
                metric.startswith("ce_recovered") and is_loss(subset))
            l0 = found.figures.get((l0_subset(subset), "l0"))
            if not wanted or l0 is None:
                continue
            rows.append(FrontierRow(own.set, found.seed_set.curve, "", subset, metric, l0.value, l0.low, l0.high,
                                    own.value, own.low, own.high))
            for member in found.seed_set.members if len(found.seed_set.members) > 1 else ():
                value, active = member.figure(subset, metric), member.figure(l0_subset(subset), "l0")
                if value is not None and active is not None:
                    rows.append(FrontierRow(own.set, found.seed_set.curve, member.run.name, subset, metric, active,
                                            None, None, value, None, None))
    return rows


def position_rows(measured: Sequence[Measured]) -> list[FigureRow]:
    """Error by position in the conversation."""
    return _some(measured, lambda found: position_subsets([subset for subset, _ in found.figures]))


def class_rows(measured: Sequence[Measured]) -> list[FigureRow]:
    """Error by class of token."""
    return _some(measured, lambda found: [subset for subset, _ in found.figures if subset.startswith("class:")])


def _some(measured: Sequence[Measured], choose: Any) -> list[FigureRow]:
    return [found.figures[subset, metric] for found in measured for subset in dict.fromkeys(choose(found))
            for metric in ("explained_variance", "normalised_error", "mse") if (subset, metric) in found.figures]


def density_rows(sets: Sequence[SeedSet]) -> list[DensityRow]:
    """Histograms of how often latents are active (log10 of the share of ordinary held-out tokens)."""
    rows = []
    for one in sets:
        found = [member.run.evaluation["latents"] for member in one.members]
        if any(latents is None for latents in found):
            continue
        histograms = [latents["density_log10_histogram"] for latents in found]
        d_sae = one.members[0].run.evaluation["d_sae"]
        edges = histograms[0]["edges"]
        never = float(np.mean([histogram["never_fired"] for histogram in histograms]))
        rows.append(DensityRow(one.label, None, edges[0], never, never / d_sae))
        counts = np.mean([histogram["counts"] for histogram in histograms], axis=0).tolist()
        rows += [DensityRow(one.label, low, high, count, count / d_sae)
                 for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    return rows


def training_rows(sets: Sequence[SeedSet]) -> list[TrainingRow]:
    """The training curves of the SAEs that were trained here."""
    return [TrainingRow(one.label, member.run.name, int(line["tokens"] or 0), *(line.get(name) for name in TRAINING))
            for one in sets for member in one.members if isinstance(member.run, FinishedRun)
            for line in member.run.metrics]


def as_csv(kind: type[Any], rows: Iterable[Any]) -> bytes:
    """Rows of a dataclass as CSV with a header, also where there are none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(kind)])
    writer.writerows([[exact(value) for value in astuple(row)] for row in rows])
    return text.getvalue().encode()


def exact(value: object) -> str:
    """A value as it stands in a CSV file."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)

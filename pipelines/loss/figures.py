"""Figures of the spliced loss, from sums over the predictions of each conversation. docs/metrics.md has the formulas.

A scope says which predictions are averaged, and whether position 0 of a sequence takes part. An attention sink makes
that position unlike all others from some layer on, and most SAEs were not trained on it: in the scopes without it, it
keeps its own activation, and what is predicted from it is not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.evaluation.bootstrap import interval, resampled_sums
from train.evaluation.metrics import Bools, Floats, Ints


@dataclass(frozen=True)
class Scope:
    """Which predictions are averaged."""

    assistant: bool
    """Only tokens that are an assistant's words or end its turn, as what is predicted."""
    first: bool
    """Whether position 0 takes part: its activation is replaced, and what is predicted from it is counted."""


SCOPES = {
    "assistant": Scope(assistant=True, first=True),
    "assistant_without_first": Scope(assistant=True, first=False),
    "all": Scope(assistant=False, first=True),
    "all_without_first": Scope(assistant=False, first=False),
}

SUMS = ("n", "ce", "ce_spliced", "kl", "ce_zero", "kl_zero", "ce_mean", "kl_mean")
"""Sums by conversation and scope: predictions, and over them what the module's figures are means of."""

WITH_INTERVALS = ("kl", "delta_ce", "ce_recovered_zero", "ce_recovered_mean")

Table = dict[str, Floats]
"""Some of `SUMS`, each ``[conversations, scopes]``."""


class LossSums:
    """Adds up what predictions cost, by conversation and scope."""

    def __init__(self, num_conversations: int, names: tuple[str, ...]) -> None:
        self.table: Table = {name: np.zeros((num_conversations, len(SCOPES))) for name in names}

    def add(self, name: str, values: Floats, conversation: Ints, member: Bools) -> None:
        """Add a value of each of some predictions.

        Args:
            values: [predictions]
            conversation: [predictions], their places in the table.
            member: [predictions, scopes]
        """
        sums = self.table[name]
        for scope in range(len(SCOPES)):
            chosen = member[:, scope]
            sums[:, scope] += np.bincount(conversation[chosen], values[chosen], len(sums))


def scope_figures(table: Mapping[str, Floats]) -> dict[str, dict[str, Any]]:
    """The figures of every scope, with intervals, from all `SUMS`; one that is not defined is None."""
    totals = {name: sums.sum(0) for name, sums in table.items()}
    figures = loss_figures(totals)
    samples = loss_figures(resampled_sums(table)) if len(table["n"]) > 1 else {}
    found: dict[str, dict[str, Any]] = {}
    for number, scope in enumerate(SCOPES):
        values = {name: _defined(array[number]) for name, array in figures.items()}
        ends = {name: interval(samples[name][:, number]) for name in WITH_INTERVALS
                if samples and values[name] is not None}
        found[scope] = {
            "num_tokens": int(totals["n"][number]),
            "num_conversations": int((table["n"][:, number] > 0).sum()),
            **values,
            "intervals": {name: pair for name, pair in ends.items() if pair is not None},
        }
    return found


def loss_figures(sums: Mapping[str, Floats]) -> dict[str, Floats]:
    """Figures of all `SUMS`, of any shape; not finite where one is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {name: values / sums["n"] for name, values in sums.items() if name != "n"}
        delta = means["ce_spliced"] - means["ce"]
        return {
            "ce": means["ce"],
            "ce_spliced": means["ce_spliced"],
            "delta_ce": delta,
            "delta_ce_percent": 100 * delta / means["ce"],
            "kl": means["kl"],
            **{name: means[name] for name in ("ce_zero", "ce_mean", "kl_zero", "kl_mean")},
            "ce_recovered_zero": _recovered(means, "ce_zero"),
            "ce_recovered_mean": _recovered(means, "ce_mean"),
        }


def _recovered(means: Mapping[str, Floats], ablation: str) -> Floats:
    """The share of an ablation's damage that the SAE does not do; NaN where the ablation does none."""
    damage = means[ablation] - means["ce"]
    recovered: Floats = np.where(damage > 0, (means[ablation] - means["ce_spliced"]) / damage, np.nan)
    return recovered


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

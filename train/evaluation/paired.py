"""Paired comparisons: sums by conversation as they lie beside an SAE, brought into one order, and drawn again.

Two SAEs measured on the same conversations are compared on each draw of conversations, so that what a draw does to
both cancels in their difference (the paired bootstrap: Efron and Tibshirani 1993, An Introduction to the Bootstrap,
ch. 10; resampling clusters: Davison and Hinkley 1997, section 3.8):

    D        = figure(sums of SAE) - figure(sums of reference)
    D*_r     = figure(sum_c w_rc sums_c of SAE) - figure(sum_c w_rc sums_c of reference)

with w_rc how often draw r has conversation c, the same for both (`bootstrap.resamples` depends on the number of
conversations alone), and the interval is that of the D*_r. Conversations are paired by the hash of their content, so
that those of two caches find each other. docs/metrics.md says what an interval means.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import CorruptError
from train.evaluation.conversation_sums import figures_of_sums
from train.evaluation.files import EVAL_CONVERSATIONS, OF_CONVERSATIONS
from train.evaluation.metrics import Floats, Ints
from train.tensor_files import read_metadata, read_tensors

Keys = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class ConversationSums:
    """Sums by conversation and subset."""

    keys: Keys
    """[conversations]: hashes of their content"""
    subsets: tuple[str, ...]
    sums: dict[str, Floats]
    """By name, each [conversations, subsets]"""

    def ordered(self, places: Ints) -> "ConversationSums":
        """The same with the conversations in another order."""
        return ConversationSums(self.keys[places], self.subsets,
                                {name: values[places] for name, values in self.sums.items()})

    def total(self, name: str) -> dict[str, float]:
        """One sum over all conversations, by subset."""
        return dict(zip(self.subsets, self.sums[name].sum(axis=0).tolist(), strict=True))


def read_conversations(folder: Path) -> ConversationSums:
    """The sums of eval_conversations.safetensors.

    Raises:
        StorageError: the file cannot be read. CorruptError: it is damaged.
    """
    path = folder / EVAL_CONVERSATIONS
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    try:
        subsets = tuple(json.loads(read_metadata(path)["subsets"]))
        keys = arrays["key"].view(np.uint64)
    except (KeyError, ValueError) as error:
        raise CorruptError(f"{path} is damaged: it lacks {error}. Write it again: python -m pipelines "
                           "evaluate") from None
    return ConversationSums(keys, subsets, {name: arrays[name] for name in OF_CONVERSATIONS if name in arrays})


def pairing(keys: Keys, others: Keys) -> Ints | None:
    """The places of conversations such that ``keys[places] == others``; None where these are not the same ones.

    Conversations of equal content are paired in the order in which they stand.
    """
    if len(keys) != len(others):
        return None
    order, wanted = np.argsort(keys, kind="stable"), np.argsort(others, kind="stable")
    if not np.array_equal(keys[order], others[wanted]):
        return None
    places = np.empty(len(keys), np.int64)
    places[wanted] = order
    return places


def activation_figures(sums: dict[str, Floats], d_in: int) -> dict[str, Floats]:
    """`figures_of_sums` with log2 of both kinds of mse."""
    found = figures_of_sums(sums, d_in)
    with np.errstate(divide="ignore", invalid="ignore"):
        return found | {f"log2_{name}": np.log2(found[name]) for name in ("mse", "mse_paper") if name in found}

"""What figures and subsets of tokens are called on every page, and which of them stand first."""

from collections.abc import Sequence
from dataclasses import dataclass

from train.evaluation.subsets import POSITIONS


@dataclass(frozen=True)
class Metric:
    """A figure: its name in eval.json or eval_loss.json, and how people see it."""

    name: str
    title: str
    unit: str
    form: str
    """How a value is formatted where two are compared; a difference has a sign besides."""


METRICS = {metric.name: metric for metric in (
    Metric("explained_variance", "explained variance", "share of 1", ".4f"),
    Metric("mse", "mse", "squared activation per dimension", "#.4g"),
    Metric("log2_mse", "log2 mse", "log2, per dimension", ".3f"),
    Metric("mse_paper", "mse_paper", "mean of conversations' means", "#.4g"),
    Metric("log2_mse_paper", "log2 mse_paper", "log2, mean of conversations' means", ".3f"),
    Metric("normalised_error", "normalised error", "share of |x|², mean over tokens", ".4f"),
    Metric("cosine", "cosine of x and its reconstruction", "mean over tokens", ".4f"),
    Metric("shrinkage", "shrinkage", "1 is none, less is shrunk", ".4f"),
    Metric("l0", "L0", "active latents per token", ".2f"),
    Metric("kl", "KL", "nats per token", ".4f"),
    Metric("delta_ce", "CE added", "nats per token", ".4f"),
    Metric("ce_recovered_mean", "CE recovered, of mean ablation", "share of 1", ".4f"),
    Metric("ce_recovered_zero", "CE recovered, of zero ablation", "share of 1", ".4f"),
)}

HEADLINE_SUBSETS = ("content", "policy", "all_without_first", "special_without_first", "class:user", "class:assistant")
HEADLINE_METRICS = ("explained_variance", "log2_mse", "l0", "kl", "delta_ce", "ce_recovered_mean")
"""What the page and the terminal show; the CSV files have all."""

_WORDS = {
    "content": "content tokens",
    "policy": "ordinary tokens",
    "all_without_first": "all tokens without FIRST",
    "special": "special tokens, FIRST among them",
    "special_without_first": "special tokens without FIRST",
    "all": "all tokens",
}
STREAMS = {"conversations": "conversations", "blocks": "packed blocks"}
"""What the language model's loss is measured on."""
SCOPES = {"all": "all predictions", "assistant": "assistant's words",
          "all_without_first": "all predictions, position 0 left as it is",
          "assistant_without_first": "assistant's words, position 0 left as it is"}
"""Which of its predictions."""


def is_headline(subset: str, metric: str) -> bool:
    """Whether the page's tables have it; scopes of the loss without position 0, which most SAEs do not train on."""
    return metric in HEADLINE_METRICS and (
        subset in HEADLINE_SUBSETS or (is_loss(subset) and subset.endswith("_without_first")))


def is_loss(subset: str) -> bool:
    """Whether it is a stream and scope of the language model's loss."""
    return subset.partition(":")[0] in STREAMS


def subset_words(subset: str) -> str:
    """What a subset is called on a page."""
    kind, _, rest = subset.partition(":")
    if kind in STREAMS:
        return f"loss on {STREAMS[kind]}: {SCOPES.get(rest, rest)}"
    if kind == "class":
        return f"class {rest.replace('_', ' ')}"
    if kind == "position":
        return f"position {rest}"
    return _WORDS.get(subset, subset)


def l0_subset(subset: str) -> str:
    """The subset whose L0 says how sparse an SAE is on another: itself, or the tokens whose loss is measured."""
    if not is_loss(subset):
        return subset
    return "class:assistant" if ":assistant" in subset else "all_without_first"


def in_order(subsets: Sequence[str]) -> list[str]:
    """Headline subsets first, then the others as they come, loss last."""
    first = [subset for subset in HEADLINE_SUBSETS if subset in subsets]
    return first + sorted((subset for subset in subsets if subset not in first), key=is_loss)


def position_subsets(subsets: Sequence[str]) -> list[str]:
    """The ranges of positions among some subsets, ascending."""
    return [f"position:{name}" for name in POSITIONS if f"position:{name}" in subsets]

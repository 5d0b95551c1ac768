"""Models by the alias a user types: where they are, and which layers the FAST paper trained on.

Anything else works too: a hub id "org/name" or a local folder. Revisions are not listed here: a hub
model's revision is resolved to a commit at first use and kept in the cache's plan.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelEntry:
    """A known model."""

    repo: str
    """Hub id, or "embedded:<name>" for a model that comes as a Python package."""
    layers: tuple[int, ...]
    """Layers harvested unless asked otherwise, 0-based."""
    dataset: str = "tulu-3-sft-mixture"
    num_tokens: int = 40_960_000
    """Training tokens: the FAST paper's budget."""


MODELS: dict[str, ModelEntry] = {
    "smollm2-135m-instruct": ModelEntry(
        "embedded:smollm2-135m-instruct", (9, 15), dataset="chitchat", num_tokens=1_000_000
    ),
    "llama3.1-8b-instruct": ModelEntry("meta-llama/Llama-3.1-8B-Instruct", (4, 12, 18, 20, 25)),
    "llama3.2-3b-instruct": ModelEntry("meta-llama/Llama-3.2-3B-Instruct", (4, 12, 20)),
    "llama3.2-1b-instruct": ModelEntry("meta-llama/Llama-3.2-1B-Instruct", (4, 9, 14)),
    "qwen2.5-7b-instruct": ModelEntry("Qwen/Qwen2.5-7B-Instruct", (4, 12, 18, 20, 25)),
    "qwen2.5-3b-instruct": ModelEntry("Qwen/Qwen2.5-3B-Instruct", (4, 18, 32)),
    "qwen2.5-1.5b-instruct": ModelEntry("Qwen/Qwen2.5-1.5B-Instruct", (4, 14, 24)),
    "qwen2.5-0.5b-instruct": ModelEntry("Qwen/Qwen2.5-0.5B-Instruct", (4, 12, 20)),
}


def default_layers(num_layers: int) -> list[int]:
    """The layers of a model that is not in the registry: at a quarter, half and three quarters of its depth."""
    return sorted({num_layers // 4, num_layers // 2, 3 * num_layers // 4})

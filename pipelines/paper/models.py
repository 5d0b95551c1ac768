"""Sizes of the paper's models and of the embedded one, as their published config.json gives them."""

from dataclasses import dataclass

from shared.registry import MODELS


@dataclass(frozen=True)
class ModelSizes:
    """What a forward pass costs follows from these. All models here are of Llama's or Qwen2's kind: grouped-query
    attention, and an MLP of three matrices."""

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    d_head: int
    d_mlp: int
    """Width inside the MLP."""
    vocabulary: int
    tied: bool
    """Whether unembedding and embedding are one matrix."""
    qkv_bias: bool = False

    @property
    def d_attention(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_head

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's matrices, which every token is multiplied with."""
        d_kv = self.num_kv_heads * self.d_head
        return self.d_model * (2 * self.d_attention + 2 * d_kv + 3 * self.d_mlp)

    @property
    def num_parameters(self) -> int:
        """All parameters: a layer's matrices, biases and two norms, embeddings, and the last norm."""
        biases = self.d_attention + 2 * self.num_kv_heads * self.d_head if self.qkv_bias else 0
        embeddings = self.vocabulary * self.d_model * (1 if self.tied else 2)
        return self.num_layers * (self.layer_weights + biases + 2 * self.d_model) + embeddings + self.d_model


SIZES: dict[str, ModelSizes] = {
    "smollm2-135m-instruct": ModelSizes(30, 576, 9, 3, 64, 1_536, 49_152, tied=True),
    "llama3.1-8b-instruct": ModelSizes(32, 4_096, 32, 8, 128, 14_336, 128_256, tied=False),
    "llama3.2-3b-instruct": ModelSizes(28, 3_072, 24, 8, 128, 8_192, 128_256, tied=True),
    "llama3.2-1b-instruct": ModelSizes(16, 2_048, 32, 8, 64, 8_192, 128_256, tied=True),
    "qwen2.5-7b-instruct": ModelSizes(28, 3_584, 28, 4, 128, 18_944, 152_064, tied=False, qkv_bias=True),
    "qwen2.5-3b-instruct": ModelSizes(36, 2_048, 16, 2, 128, 11_008, 151_936, tied=True, qkv_bias=True),
    "qwen2.5-1.5b-instruct": ModelSizes(28, 1_536, 12, 2, 128, 8_960, 151_936, tied=True, qkv_bias=True),
    "qwen2.5-0.5b-instruct": ModelSizes(24, 896, 14, 2, 64, 4_864, 151_936, tied=True, qkv_bias=True),
}
"""By alias (`shared.registry`), from the config.json of each model's page on the hub. `num_parameters` is then the
number of parameters that the page shows, which a test compares."""

PAPER_MODELS = tuple(alias for alias in MODELS if alias != "smollm2-135m-instruct")
"""The paper's seven, in its order."""


def expansions_of(alias: str) -> tuple[float, ...]:
    """Widths that the paper trains: 8 times d_model, and 16 times too for models under 7 billion parameters."""
    return (8.0,) if SIZES[alias].num_parameters >= 7_000_000_000 else (8.0, 16.0)

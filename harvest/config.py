"""The ``[harvest]`` table of a recipe."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from harvest.conversation import ROLES
from harvest.order import OrderKind
from harvest.template import ControlPolicy
from shared.format.layout import BLOCK_ROWS, ROWS_PER_SHARD
from shared.recipe import Table

DEFAULT_DATE = "26 Jul 2024"


LayoutName = Literal["messages", "messages-json", "conversations", "conversation", "prompt-response", "text"]
"""The names of `harvest.layouts.LAYOUTS`."""


class MixturePart(Table):
    """A ``[[harvest.mixture]]`` table: one data set of a mixture, in the keys of `HarvestConfig`'s ``dataset``."""

    dataset: str = Field(min_length=1)
    """Alias, hub id, file, folder or pattern."""
    weight: float = Field(1.0, gt=0, le=1)
    """Share of its conversations that is taken, by hash: 0.25 takes a quarter of them."""
    seed: int = 0
    """Seed of that hash: another seed takes others."""
    config: str | None = None
    """Configuration (subset) of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    split: str = "train"
    """Split of a hub data set."""
    layout: LayoutName | None = None
    """How its rows hold conversations. Default: as its first row says."""


class Deduplicate(Table):
    """N-gram deduplication (`harvest.deduplicate`): Algorithm 1 of the FAST paper (arXiv 2506.07691)."""

    n: int = Field(20, ge=1)
    """Words or characters of an n-gram. No n-gram crosses a turn."""
    unit: Literal["words", "characters"] = "words"
    """What an n-gram is made of: words between unicode whitespace, as str.split() finds them, or code points."""
    roles: list[str] | None = Field(None, min_length=1)
    """Roles whose turns count. Default: all, as in the paper; a system prompt of n words and more that conversations
    have in common then leaves only the first of them."""
    short_texts: Literal["keep", "turns", "samples"] = "keep"
    """Texts of fewer than n words, which have no n-gram. "keep": they count for nothing, as in the paper. "turns": a
    short turn counts as one n-gram, so that a common "Thank you!" drops a conversation. "samples": only where no turn
    that counts has n words do all these turns as a whole count as one: short chats that are equal are then found."""
    action: Literal["drop", "together"] = "drop"
    """What becomes of duplicates. "drop": the first one is kept. "together": those connected by common n-grams,
    directly or through others, stand on one side: one that is held out by its own key while the first of them is not,
    or the other way round, is left out (to move it would train on what another plan holds out)."""


class HarvestConfig(Table):
    """What to harvest. Every field has a default that follows from the model, but ``model`` itself."""

    model: str = Field(min_length=1)
    """Alias of the registry, hub id "org/name", or a local folder with config.json and safetensors."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; resolved to a commit at first use and kept in the plan."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Needs ``revision`` with the commit (40 hex digits) of that code."""
    dataset: str | None = None
    """Alias, hub id, or local data: a file, a folder or a pattern of files ("chats/*.jsonl.gz"). Default: the model's.

    Files are JSONL or text (also .gz, .bz2, .xz, .zst), Parquet or Arrow. Aliases stand in harvest/known_datasets.py.
    """
    dataset_revision: str | None = None
    """Branch, tag or commit of a hub data set; resolved like revision."""
    dataset_split: str = "train"
    """Split of a hub data set."""
    dataset_config: str | None = None
    """Configuration (subset) of a hub data set. Default: the alias's, or the only one."""
    dataset_layout: LayoutName | None = None
    """How rows hold conversations, a name of harvest/layouts.py. Default: the alias's, or as the first row says."""
    mixture: list[MixturePart] | None = Field(None, min_length=1)
    """Several data sets instead of one, as [[harvest.mixture]] tables; see `MixturePart`."""
    roles: list[str] = Field(list(ROLES), min_length=1)
    """Roles that a conversation may have. A row with another is skipped and counted (unknown_role), as are rows with
    tools (has_tools) and with pictures or sound (has_media): without them it would be another conversation."""
    merge_same_role: bool = False
    """Make one turn of neighbouring turns of the same role, for templates that want roles to alternate. Their texts
    are joined by a blank line, blank ones left out; see harvest/normalise.py."""
    fold_system: bool = False
    """Put system turns at the start of a conversation before the text of its first user turn, with a blank line
    between, for templates that take no system turn; before merge_same_role."""
    drop_default_system: bool = False
    """Leave out the system turn that the template puts where a conversation has none (Qwen2.5's, SmolLM2's)."""
    deduplicate: Deduplicate | None = None
    """Leave duplicates out, in the order in which the data set is read; see `Deduplicate`. Default: all are kept."""
    layers: list[int] | None = Field(None, min_length=1)
    """Decoder layers, 0-based. Default: the registry's, else those at 1/4, 1/2 and 3/4 of the depth."""
    num_tokens: int | None = Field(None, gt=0)
    """Training rows wanted, rounded up to whole units. A larger number later goes on from there."""
    plan_tokens: Annotated[int, Field(gt=0)] | Literal["all"] | None = None
    """Training rows the plan holds at most. Default: four times num_tokens."""
    held_out_rows: int | None = Field(None, gt=0)
    """Rows of held-out conversations at most. Default: no limit in rows, 5,000 conversations."""
    max_length: int = Field(8192, ge=2)
    """Tokens after which a conversation is cut (the FAST paper's 8,192), or as many as the model has positions for."""
    seed: int = 0
    """Seed of the order of conversations."""
    order: OrderKind = "fast"
    """What goes through the model in one piece: "fast", each conversation on its own; "block", conversations one
    after the other, cut every ``block_length`` tokens, with attention across them; "block-masked", the same cuts, but
    no conversation sees another. Plain text goes with the block orders alone."""
    block_length: int = Field(2048, ge=2, le=1 << 20)
    """Tokens of a block (the FAST paper's 2,048)."""
    separator: Literal["auto", "none", "bos", "eos"] = "auto"
    """Token before every conversation in a block, unless it begins with that one already. Auto: the tokenizer's BOS;
    where it has none, EOS before plain text and nothing before chats."""
    block_bos: Literal["auto", "none", "bos"] = "auto"
    """Token at the start of every block, in place of a separator there. Auto: the tokenizer's BOS, if it has one."""
    control_tokens: ControlPolicy = "escape"
    """What becomes of control tokens that a user typed: "escape", "keep" or "reject" the conversation."""
    template_variables: dict[str, str] = Field(default_factory=lambda: {"date_string": DEFAULT_DATE})
    """Variables of the chat template. It never sees the clock: Llama-3's date is this one."""
    template_date: date = date(2024, 7, 26)
    """What strftime_now tells a template that asks for today."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """Share of malformed rows above which nothing is harvested."""
    rows_per_shard: int = Field(ROWS_PER_SHARD, gt=0, multiple_of=BLOCK_ROWS)
    """Rows of a shard, which is one file a layer."""
    batch_tokens: int | None = Field(None, gt=0)
    """Padded tokens that go through the model at once. Default: 32,768 on CUDA, 2,048 on a CPU."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the forward pass. Auto: bfloat16 on CUDA, float32 on a CPU. Stored is bfloat16."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """transformers' attention implementation."""
    nonfinite: Literal["keep", "error"] = "keep"
    """Rows with a NaN or an infinity: kept, listed in the record and skipped by readers, or an error."""

    @field_validator("layers")
    @classmethod
    def _layers_are_sorted(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and any(layer < 0 for layer in layers):
            raise ValueError("layers are numbered from 0")
        return sorted(set(layers)) if layers else layers

    @field_validator("mixture")
    @classmethod
    def _mixture_is_instead_of_a_data_set(
        cls, mixture: list[MixturePart] | None, info: ValidationInfo
    ) -> list[MixturePart] | None:
        if mixture and info.data.get("dataset"):
            raise ValueError("A mixture takes the place of dataset: give one of them")
        return mixture

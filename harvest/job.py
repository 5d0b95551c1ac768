"""A harvest whose names are resolved: the model on disk, the data set found, every size decided."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from harvest.config import HarvestConfig
from harvest.device import Device
from harvest.mixture import Mixture, find_data
from harvest.model import ModelSource, find_model
from harvest.order import Order
from harvest.sources import Source
from harvest.template import ChatTemplate, ChatTokenizer
from shared.errors import RecipeError
from shared.format.plan import Pass, Plan
from shared.registry import MODELS, ModelEntry, default_layers

BATCH_BUDGET = "batch-budget"
ALLOWED = (BATCH_BUDGET,)
"""What may differ from a cache's plan where the user says so (--allow)."""


@dataclass(frozen=True)
class Job:
    """A harvest whose names are resolved: model on disk, data set found, sizes decided."""

    config: HarvestConfig
    model: ModelSource
    source: Source | Mixture
    tokenizer: ChatTokenizer
    template: ChatTemplate
    order: Order
    d_model: int
    num_layers: int
    layers: list[int]
    num_tokens: int
    device: Device
    allow: frozenset[str] = frozenset()
    """Differences from the plan that were allowed: "batch-budget"."""

    @property
    def plan_tokens(self) -> int | None:
        """Training rows the plan holds at most; None for the whole set."""
        if self.config.plan_tokens == "all":
            return None
        return self.config.plan_tokens or 4 * self.num_tokens

    def pass_(self, there: Iterable[Pass] = ()) -> Pass:
        """The pass that this job harvests.

        Args:
            there: the passes of the cache. A number format that the recipe leaves open is that of the pass of
                the same layers, so that the same command goes on on another kind of device (with a warning).
        """
        dtype = self.device.compute_dtype(self.config.compute_dtype)
        for other in there:
            same = (other.layers, other.attention) == (self.layers, self.config.attention)
            if same and self.config.compute_dtype == "auto":
                dtype = other.compute_dtype
        return Pass(layers=self.layers, compute_dtype=dtype, attention=self.config.attention)

    def sizes(self, plan: Plan | None) -> dict[str, Any]:
        """Sizes that belong to the identity; what the recipe leaves open is the plan's, if there is one."""
        config, named = self.config, self.config.model_fields_set
        if plan is not None:
            there = {name: plan.identity.get(name) for name in ("plan_tokens", "rows_per_shard", "batch_tokens")}
            asked = {name: getattr(config, name) for name in there if name in named}
            if BATCH_BUDGET in self.allow:
                asked.pop("batch_tokens", None)
            return {**there, **asked, "shards_per_unit": plan.shards_per_unit}
        batch_tokens = config.batch_tokens or self.device.batch_tokens
        return {
            "plan_tokens": self.plan_tokens or "all",
            "rows_per_shard": config.rows_per_shard,
            "batch_tokens": batch_tokens,
            "shards_per_unit": shards_per_unit(config.rows_per_shard, batch_tokens, self.num_tokens),
        }

    def batch_tokens(self, plan: Plan) -> int:
        """The batch budget of this run: the plan's, or where another one is allowed the recipe's or the device's."""
        if BATCH_BUDGET in self.allow:
            return self.config.batch_tokens or self.device.batch_tokens
        return plan.batch_tokens


def shards_per_unit(rows_per_shard: int, batch_tokens: int, num_tokens: int) -> int:
    """The largest power of two that keeps a unit within 64 batches and an eighth of the tokens asked."""
    limit = min(64 * batch_tokens, num_tokens // 8)
    shards = 1
    while 2 * shards * rows_per_shard <= limit:
        shards *= 2
    return shards


def find_order(config: HarvestConfig, tokenizer: ChatTokenizer, holds_text: Callable[[], bool]) -> Order:
    """The order that a recipe asks for, with this tokenizer's tokens.

    Args:
        holds_text: whether the data are plain text; asked only where it matters.

    Raises:
        RecipeError: a token is asked for that the tokenizer has not.
    """
    if config.order == "fast":
        return Order()
    has_bos = tokenizer.bos_token is not None
    separator, bos = config.separator, config.block_bos
    if separator == "auto":
        separator = "bos" if has_bos else "eos" if holds_text() else "none"
    if bos == "auto":
        bos = "bos" if has_bos else "none"
    return Order(config.order, config.block_length, _token(tokenizer, separator), _token(tokenizer, bos))


def _token(tokenizer: ChatTokenizer, name: str) -> tuple[str, int] | None:
    if name == "none":
        return None
    number = getattr(tokenizer, f"{name}_token_id")
    if number is None:
        raise RecipeError(f"The model's tokenizer has no {name.upper()} token to put between conversations. Choose "
                          "another one: --set harvest.separator=none --set harvest.block_bos=none")
    return name, int(number)


def _within_positions(config: HarvestConfig, positions: int | None) -> HarvestConfig:
    """The recipe with no sequence longer than the model has positions for: what it gives past them means nothing.

    Conversations are cut there, as at ``max_length``.

    Raises:
        RecipeError: blocks are longer.
    """
    if positions is None or positions >= max(config.max_length, config.block_length if config.order != "fast" else 0):
        return config
    if config.order != "fast" and config.block_length > positions:
        raise RecipeError(f"Blocks of {config.block_length:,} tokens are longer than the {positions:,} positions that "
                          f"the model was made for. Take shorter ones: --set harvest.block_length={positions}")
    return config.model_copy(update={"max_length": min(config.max_length, positions)})


def prepare(
    config: HarvestConfig, device: Device, plan: Plan | None = None, allow: Iterable[str] = ()
) -> Job:
    """Resolve and check everything that can be wrong before work begins.

    Revisions that the recipe leaves open are those of ``plan``, the plan of the cache that is there already:
    a hub's branch may have moved on since.

    Args:
        allow: what may differ from the plan, of `ALLOWED`.

    Raises:
        UserError: see `find_model`, `find_data`, `ModelSource`, `ChatTemplate`; or a layer out of range.
    """
    entry = MODELS.get(config.model) or ModelEntry(config.model, ())
    kept = plan.identity if plan is not None else {}
    model = find_model(config.model, config.revision, kept.get("model"), config.trust_remote_code)
    model_config = model.config().get_text_config()  # of a multimodal model, its language half
    num_layers = int(model_config.num_hidden_layers)
    config = _within_positions(config, getattr(model_config, "max_position_embeddings", None))
    layers = config.layers or list(entry.layers) or default_layers(num_layers)
    beyond = [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise RecipeError(f"Layer {beyond[0]} is out of range: {model.name} has layers 0 to {num_layers - 1}. Choose "
                          "among those: --layers \"4 12\" (make: SET=harvest.layers=[4,12])")
    tokenizer = model.tokenizer()
    template = ChatTemplate(tokenizer, config.template_variables, config.control_tokens, config.template_date,
                            drop_default_system=config.drop_default_system)
    source = find_data(config, entry.dataset, kept.get("dataset") or {})
    return Job(
        config=config,
        model=model,
        source=source,
        tokenizer=tokenizer,
        template=template,
        order=find_order(config, tokenizer, source.holds_text),
        d_model=int(model_config.hidden_size),
        num_layers=num_layers,
        layers=layers,
        num_tokens=config.num_tokens or entry.num_tokens,
        device=device,
        allow=frozenset(allow),
    )

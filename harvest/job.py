"""A harvest whose names are resolved: the model on disk, the data set found, every size decided."""

from dataclasses import dataclass
from typing import Any

from harvest.config import HarvestConfig
from harvest.device import Device
from harvest.model import ModelSource, find_model, load_tokenizer
from harvest.sources import Source, find_source
from harvest.template import ChatTemplate, ChatTokenizer
from shared.errors import RecipeError
from shared.plan import Pass, Plan
from shared.registry import MODELS, ModelEntry, default_layers


@dataclass(frozen=True)
class Job:
    """A harvest whose names are resolved: model on disk, data set found, sizes decided."""

    config: HarvestConfig
    model: ModelSource
    source: Source
    tokenizer: ChatTokenizer
    template: ChatTemplate
    d_model: int
    num_layers: int
    layers: list[int]
    num_tokens: int
    device: Device

    @property
    def plan_tokens(self) -> int | None:
        """Training rows the plan holds at most; None for the whole set."""
        if self.config.plan_tokens == "all":
            return None
        return self.config.plan_tokens or 4 * self.num_tokens

    def pass_(self) -> Pass:
        """The pass that this job harvests."""
        dtype = self.device.compute_dtype(self.config.compute_dtype)
        return Pass(layers=self.layers, compute_dtype=dtype, attention=self.config.attention)

    def sizes(self, plan: Plan | None) -> dict[str, Any]:
        """Sizes that belong to the identity; what the recipe leaves open is the plan's, if there is one."""
        config, named = self.config, self.config.model_fields_set
        if plan is not None:
            there = {name: plan.identity.get(name) for name in ("plan_tokens", "rows_per_shard", "batch_tokens")}
            asked = {name: getattr(config, name) for name in there if name in named}
            return {**there, **asked, "shards_per_unit": plan.shards_per_unit}
        batch_tokens = config.batch_tokens or self.device.batch_tokens
        return {
            "plan_tokens": self.plan_tokens or "all",
            "rows_per_shard": config.rows_per_shard,
            "batch_tokens": batch_tokens,
            "shards_per_unit": shards_per_unit(config.rows_per_shard, batch_tokens, self.num_tokens),
        }


def shards_per_unit(rows_per_shard: int, batch_tokens: int, num_tokens: int) -> int:
    """The largest power of two that keeps a unit within 64 batches and an eighth of the tokens asked."""
    limit = min(64 * batch_tokens, num_tokens // 8)
    shards = 1
    while 2 * shards * rows_per_shard <= limit:
        shards *= 2
    return shards


def prepare(config: HarvestConfig, device: Device, plan: Plan | None = None) -> Job:
    """Resolve and check everything that can be wrong before work begins.

    Revisions that the recipe leaves open are those of ``plan``, the plan of the cache that is there already:
    a hub's branch may have moved on since.

    Raises:
        UserError: see `find_model`, `find_source`, `load_tokenizer`, `ChatTemplate`; or a layer out of range.
    """
    entry = MODELS.get(config.model) or ModelEntry(config.model, ())
    kept = plan.identity if plan is not None else {}
    model = find_model(config.model, config.revision, kept.get("model"))
    model_config = model.config().get_text_config()  # of a multimodal model, its language half
    num_layers = int(model_config.num_hidden_layers)
    layers = config.layers or list(entry.layers) or default_layers(num_layers)
    beyond = [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise RecipeError(f"Layer {beyond[0]} is out of range: {model.name} has layers 0 to {num_layers - 1}.")
    tokenizer = load_tokenizer(model.folder)
    template = ChatTemplate(tokenizer, config.template_variables, config.control_tokens, config.template_date)
    return Job(
        config=config,
        model=model,
        source=find_source(
            config.dataset or entry.dataset, config.dataset_split, config.dataset_revision, kept.get("dataset")
        ),
        tokenizer=tokenizer,
        template=template,
        d_model=int(model_config.hidden_size),
        num_layers=num_layers,
        layers=layers,
        num_tokens=config.num_tokens or entry.num_tokens,
        device=device,
    )

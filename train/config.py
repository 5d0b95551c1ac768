"""The [train] table, the [[sae]] tables, and what a run makes of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from shared.digests import canonical_json
from shared.errors import RecipeError
from shared.recipe import DEFAULT_SAES, RawRecipe, Table, read_table
from train.architectures import ARCHITECTURES
from train.architectures.base import SAEConfig
from train.grid import sae_points
from train.policy import TokenPolicy, known_types
from train.warm_start import read_source

_CALIBRATION_ROWS = 65_536


class TrainConfig(Table):
    """The table [train]: what the SAEs of a set share. Fields of `OPERATIONAL` do not change the result."""

    layer: int | None = Field(default=None, ge=0)
    """The layer to train on, 0-based; --layer comes before it."""
    num_tokens: int | None = Field(default=None, ge=1)
    """Tokens to see (rounded down to whole batches). By default ``epochs`` passes over the kept rows."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the kept rows, where num_tokens is not given."""
    batch_size: int = Field(default=1024, ge=2)
    """Rows in a batch."""
    data_seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the order of rows, shared by all SAEs of a set."""
    shuffle: Literal["windows", "mixing-buffer", "global"] = "windows"
    """How rows are shuffled (docs/shuffling.md): windows of blocks, the paper's mixing buffer, or all at once."""
    window_blocks: int | None = Field(default=None, ge=1)
    """How much is in memory and shuffled together, in blocks of 128 rows. By default twice the batch size, as memory
    allows."""
    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of SAEs that give none. By default a rule of width, tokens and batch (`default_lr`)."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Course of the rate between warm-up and decay: constant ("linear"), or half a cosine down to a tenth."""
    warmup_share: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the rate rises linearly from zero."""
    decay_share: float = Field(default=0.8, ge=0, le=1)
    """Share of the steps, the last ones, over which the rate falls linearly to zero."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the gradient's average."""
    beta2: float | None = Field(default=None, ge=0, lt=1)
    """Adam's decay of the squared gradient's average. By default a rule of the run's length
    (`train.optimizer.default_beta2`)."""
    grad_clip: float | None = Field(default=1.0, ge=0)
    """Largest global gradient norm of an SAE (the loss sums over d_in); 0: any."""
    scale: bool = True
    """Scale inputs to a mean square of 1 per dimension; folded into the weights on disk."""
    centre: Literal["mean", "geometric_median", "none"] = "mean"
    """What is subtracted from inputs, and is where b_dec starts on disk."""
    centre_input: bool = True
    """Subtract the centre from the encoder's input; else only b_dec starts there (FAST)."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the products of a step on CUDA; weights and moments are float32 always, and on a CPU so is everything."""
    calibration_batches: int | None = Field(default=None, ge=1)
    """Batches of training rows that set what is estimated with the final weights (thresholds). By default as many as
    hold 65,536 rows."""
    calibration_types: tuple[str, ...] = ()
    """Type bits ("content") of the rows on which thresholds give the asked mean L0. Empty: all rows trained on."""
    policy: TokenPolicy = TokenPolicy()
    """Which rows to train on."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """Minutes between checkpoints; 0 turns them off, except at signals and at the end."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, in addition."""
    log_steps: int = Field(default=20, ge=1)
    """Steps between lines of metrics.jsonl."""
    held_out_rows: int = Field(default=2048, ge=0)
    """Rows of the fixed held-out sample on which l0 and explained variance are measured during training; 0: none."""
    held_out_steps: int | None = Field(default=None, ge=1)
    """Steps between these measurements, rounded up to whole log_steps. By default 400,000 tokens' worth, and in a
    shorter run a quarter of it."""
    watch: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Where figures go besides metrics.jsonl: "tensorboard", "wandb", "trackio"."""
    memory_gib: float | None = Field(default=None, gt=0)
    """GiB that the SAEs trained at once may take; the others wait for their turn. By default what is free."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Processes that train an SAE between them, each a part of its latents: torchrun starts them, or a multiple."""

    def calibration_size(self) -> int:
        """Batches for calibration, where there are as many."""
        return self.calibration_batches or -(-_CALIBRATION_ROWS // self.batch_size)

    @field_validator("calibration_types")
    @classmethod
    def _known_types(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return known_types(names)

    @model_validator(mode="after")
    def _shares(self) -> "TrainConfig":
        if self.warmup_share + self.decay_share > 1 + 1e-9:
            raise ValueError(f"warmup_share ({self.warmup_share:g}) and decay_share ({self.decay_share:g}) must add up "
                             "to 1 at most")
        return self


OPERATIONAL = ("layer", "checkpoint_minutes", "checkpoint_steps", "log_steps", "held_out_rows", "held_out_steps",
               "watch", "memory_gib", "tensor_parallel")
"""Fields of [train] that leave the trained weights as they are (but for last bits: tensor_parallel), and so the name of
an SAE."""


@dataclass(frozen=True)
class SAEPlan:
    """One SAE to train: its architecture, its configuration with the width resolved, and its name."""

    architecture: str
    config: SAEConfig
    name: str
    recipe: dict[str, Any]
    """What its weights depend on apart from the cache; the name ends with a digest of it."""
    warm_start: str | None = None
    """Folder of the SAE whose weights it starts with; the recipe has that SAE's digest."""


def read_train_config(recipe: RawRecipe) -> TrainConfig:
    """The [train] table of a recipe.

    Raises:
        RecipeError: every problem on a line of its own.
    """
    table = recipe.get("train", {})
    default = TrainConfig.model_fields["epochs"].default  # which is in every recipe that was written out
    if "num_tokens" in table and table.get("epochs", default) != default:
        raise RecipeError(f"[train]: num_tokens ({table['num_tokens']!r}) and epochs ({table['epochs']!r}) both say "
                          "how long to train. Leave one out.")
    return read_table(TrainConfig, table, "[train]")


def sae_tables(recipe: RawRecipe, expansions: Sequence[float] | None) -> list[dict[str, Any]]:
    """The [[sae]] tables: those of the recipe or the default, repeated for each asked expansion.

    Raises:
        RecipeError: [sae] is no list of tables.
    """
    tables = recipe.get("sae", DEFAULT_SAES)
    if not isinstance(tables, list | tuple) or not tables or not all(isinstance(table, dict) for table in tables):
        raise RecipeError("[sae] must be a list of tables: write [[sae]] for each SAE to train.")
    tables = [{"architecture": "batchtopk", **table} for table in tables]
    if expansions:
        tables = [{**{key: value for key, value in table.items() if key != "d_sae"}, "expansion": expansion}
                  for table in tables for expansion in expansions]
    return tables


def plan_saes(tables: Sequence[dict[str, Any]], train: TrainConfig, layer: int, d_in: int) -> list[SAEPlan]:
    """Validate [[sae]] tables, each by its architecture's model, and name the SAEs: one for each combination of lists.

    Raises:
        RecipeError: an unknown architecture or key, a value out of range, or the same SAE twice.
    """
    plans: list[SAEPlan] = []
    for where, table in sae_points(tables):
        architecture = table["architecture"]
        if architecture not in ARCHITECTURES:
            raise RecipeError(f"{where}.architecture must be one of {', '.join(ARCHITECTURES)}; got {architecture!r}.")
        fields = {key: value for key, value in table.items() if key not in {"architecture", "warm_start"}}
        known = ARCHITECTURES[architecture].Config.model_fields
        for asked, instead in (("l0", "k"), ("k", "l0")):
            if asked in fields and asked not in known:
                raise RecipeError(f"{where}.{asked}: {architecture} takes its sparsity as {instead}. Give SAEs that "
                                  f"take {asked}, and those that take {instead}, [[sae]] tables of their own.")
        source = read_source(table["warm_start"], where) if "warm_start" in table else None
        if source is not None and not {"expansion", "d_sae"} & fields.keys():
            fields["d_sae"] = source["d_sae"]
        config = read_table(ARCHITECTURES[architecture].Config, fields, where)
        config = config.model_copy(update={"d_sae": config.width(d_in)})
        recipe = {
            "layer": layer,
            "train": train.model_dump(mode="json", exclude=set(OPERATIONAL)),
            "sae": {"architecture": architecture, **config.model_dump(mode="json", exclude=_left_out(config))},
            **({} if source is None else {"warm_start": source}),
        }
        digest = hashlib.sha256(canonical_json(recipe)).hexdigest()[:6]
        name = f"{architecture}-{config.d_sae}-{config.sparsity_name()}-s{config.seed}-{digest}"
        if any(plan.name == name for plan in plans):
            raise RecipeError(f"{where} is the same SAE as another one. Change its seed, or remove it.")
        if source is not None and any(_but_for_the_seed(plan.recipe) == _but_for_the_seed(recipe) for plan in plans):
            raise RecipeError(f"{where}.seed: a warm start takes its weights from its source, and not from a seed: "
                              "this is the same SAE as another one. Leave the seed out; train.data_seed gives another "
                              "order of the data.")
        plans.append(SAEPlan(architecture, config, name, recipe, table.get("warm_start")))
    return plans


def _but_for_the_seed(recipe: dict[str, Any]) -> dict[str, Any]:
    return {**recipe, "sae": {**recipe["sae"], "seed": None}}


def _left_out(config: SAEConfig) -> set[str]:
    """Fields that an SAE's name does not depend on: the width stands in d_sae, and one that came after the first SAEs
    were named counts only where it is used."""
    return {"expansion"} if config.frozen_decoder else {"expansion", "frozen_decoder"}

"""The paper's 240 SAEs, resolved from the recipes that train them: 21 caches, a model and a method each, and the SAEs
on each of their layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from harvest.config import HarvestConfig
from pipelines.paper.models import PAPER_MODELS, SIZES, expansions_of
from pipelines.paper.published import METHODS
from shared.errors import RecipeError
from shared.recipe import find_recipe, read_recipe, read_table
from shared.registry import MODELS
from train.config import SAEPlan, TrainConfig
from train.groups import plan_groups, train_configs

RECIPES = dict(zip(METHODS, ("paper-bt-p", "paper-bt-f", "paper-fast"), strict=True))
"""The harvest recipe of each method. All are trained by the recipe `paper`."""

TRAINING = "paper"


@dataclass(frozen=True)
class PaperCache:
    """One cache of the set, and the SAEs that are trained from it."""

    model: str
    """Alias."""
    method: str
    harvest: HarvestConfig
    train: TrainConfig
    layers: tuple[int, ...]
    expansions: tuple[float, ...]
    saes: dict[int, list[SAEPlan]]
    """By layer: both architectures at every width. They share every batch."""

    @property
    def name(self) -> str:
        """The cache's name under caches/: "llama3.2-3b-instruct-bt-p"."""
        return f"{self.model}-{RECIPES[self.method].removeprefix('paper-')}"

    def commands(self) -> list[str]:
        """What fills the cache and trains its SAEs, to be typed in the checkout."""
        layers = " ".join(map(str, self.layers))
        widths = " ".join(f"{width:g}" for width in self.expansions)
        return [f"make harvest RECIPE={RECIPES[self.method]} MODEL={self.model} CACHE={self.name}",
                f'make train RECIPE={TRAINING} CACHE={self.name} LAYER="{layers}" EXPANSION="{widths}"']


def paper_caches(models: Sequence[str] = PAPER_MODELS) -> list[PaperCache]:
    """The caches of some models, those of the paper by default, each with all three methods.

    Raises:
        RecipeError: a model whose sizes are not known.
    """
    unknown = [model for model in models if model not in SIZES]
    if unknown:
        raise RecipeError(f"No sizes are known of the model {unknown[0]!r}. Expected some of {', '.join(SIZES)}.")
    return [_cache(model, method) for model in models for method in METHODS]


def _cache(model: str, method: str) -> PaperCache:
    table = read_recipe(find_recipe(RECIPES[method]))["harvest"]
    layers, expansions = MODELS[model].layers, expansions_of(model)
    recipe = read_recipe(find_recipe(TRAINING))
    groups = plan_groups(recipe, train_configs(recipe, layers), expansions, SIZES[model].d_model)
    return PaperCache(model, method, read_table(HarvestConfig, {**table, "model": model}, "[harvest]"),
                      groups[0].train, layers, expansions, {group.layer: group.saes for group in groups})

"""From a cache and a number of tokens to the spliced loss of its SAEs: the model found, checked, loaded and run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harvest.device import Device
from harvest.from_plan import find_planned_model
from harvest.hub import is_downloaded
from harvest.model import ModelSource, load_language_model
from pipelines.loss.evaluate import evaluate_loss
from pipelines.loss.files import read_loss
from pipelines.loss.split_model import SplitModel
from pipelines.loss.streams import Stream, read_stream
from shared.errors import RecipeError
from shared.reading.cache import Cache
from train.evaluation.evaluate import Subject

LOSS_TOKENS = 10_000
"""Held-out tokens that the language model is run on by default."""

ATTENTION = "sdpa"

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Wanted:
    """On what the spliced loss is measured."""

    num_tokens: int = LOSS_TOKENS
    """Whole conversations, or blocks, until they have as many."""
    streams: tuple[str, ...] = ("conversations",)


@dataclass(frozen=True)
class LanguageModel:
    """The model that a cache was made with, loaded and split behind a layer."""

    source: ModelSource
    split: SplitModel
    device: Device


def open_model(cache: Cache, layer: int, device: Device, where: str | None = None, trust_remote_code: bool = False,
               source: ModelSource | None = None, download: bool = True) -> LanguageModel:
    """Find the model that a cache was made with, compare its weights with those of the cache's identity, and load it.

    Args:
        where: folder, hub id or alias, needed where the plan names a folder.
        source: the model, where it is known already to be the cache's.
        download: whether a hub's model that is not here yet may be downloaded.

    Raises:
        UserError: it is not there, is another one, or cannot be loaded; see `find_planned_model`.
    """
    known_as = cache.identity["model"]
    is_at_a_hub = source is None and where is None and _COMMIT.fullmatch(str(known_as["revision"]))
    if is_at_a_hub and not download and not is_downloaded(known_as["name"], known_as["revision"]):
        raise RecipeError(f"The model {known_as['name']!r} is not on this machine. To download it and measure with it: "
                          f"--loss-tokens {LOSS_TOKENS}")
    source = source or find_planned_model(cache.path, cache.plan, where, trust_remote_code)
    last = int(source.config().get_text_config().num_hidden_layers) - 1
    if layer > last:
        raise RecipeError(f"Layer {layer} is out of range: {source.name} has layers 0 to {last}. Choose one of those.")
    model = load_language_model(source, device.compute_dtype("auto"), ATTENTION, device.device)
    return LanguageModel(source, SplitModel(model, layer), device)


def measure_loss(cache: Cache, layer: int, subjects: Sequence[Subject], model: LanguageModel, wanted: Wanted,
                 ) -> list[dict[str, Any]]:
    """Measure the spliced loss of SAEs and baselines, write it beside them, and return each eval_loss.json.

    Raises:
        DataError: no held-out conversation is there as a whole, or one was trained on.
        RecipeError: the model cannot be started at this layer.
    """
    streams = [_stream(cache, layer, name, model.source, wanted) for name in wanted.streams]
    about = {"name": model.source.name, "revision": model.source.revision, "attention": ATTENTION}
    return evaluate_loss(cache, layer, subjects, model.split, streams, model.device, about)


def has_loss(cache: Cache, layer: int, subject: Subject, source: ModelSource, wanted: Wanted) -> bool:
    """Whether an SAE's loss was measured on these tokens, or more, already."""
    content = read_loss(subject.folder, cache.cache_id)
    if content is None or not {*wanted.streams} <= {*content["streams"]}:
        return False
    return bool(content["num_tokens"] >= len(_stream(cache, layer, wanted.streams[0], source, wanted)))


def _stream(cache: Cache, layer: int, name: str, source: ModelSource, wanted: Wanted) -> Stream:
    return read_stream(cache, layer, name, wanted.num_tokens, source.tokenizer)

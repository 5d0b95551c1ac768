"""GSNR of finished SAEs on caches: each checkpoint's own loss, on the same tokens of every stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.errors import RecipeError
from shared.format.layout import PLAN
from shared.progress import Progress
from shared.reading.cache import Cache, Split, open_cache
from train.choose_cache import CACHES
from train.evaluation.bootstrap import LEVEL
from train.evaluation.gsnr import measure_gsnr
from train.evaluation.gsnr_rows import Ints, number_of_batches, ordered_rows, shared_conversations
from train.policy import median_norm
from train.trained import TrainedSAE, open_trained, read_trained


@dataclass(frozen=True)
class Wanted:
    """What is measured."""

    folders: tuple[Path, ...]
    """Of the SAEs."""
    layer: int
    subsets: tuple[str, ...]
    split: Split
    num_tokens: int
    batch_size: int | None
    """None: each SAE's own."""
    seed: int


def layer_of(folders: Sequence[Path], layer: int | None) -> int:
    """The layer that all of some SAEs were trained on.

    Raises:
        RecipeError: they were trained on several, or on another than ``layer``.
    """
    found = {folder: int(read_trained(folder)["layer"]) for folder in folders}
    wanted = next(iter(found.values())) if layer is None else layer
    for folder, there in found.items():
        if there != wanted:
            raise RecipeError(f"{folder} was trained on layer {there}, not on layer {wanted}. Give SAEs of one layer: "
                              f"--sae FOLDER --layer {there}")
    return wanted


def training_cache(record: dict[str, Any], caches: Sequence[Cache]) -> Cache:
    """The cache that a run.json was trained on: one of those given, or the one of its name under caches/.

    Raises:
        RecipeError: it is in neither place.
    """
    for cache in caches:
        if cache.cache_id == record["cache_id"]:
            return cache
    path = CACHES / record["cache"]
    if (path / PLAN).is_file() and (there := open_cache(path)).cache_id == record["cache_id"]:
        return there
    raise RecipeError(f"{record['name']} was trained on the cache {record['cache']!r} (cache_id "
                      f"{record['cache_id'][:12]}), which is needed and not here: what is subtracted from its inputs "
                      "is measured there. Name its folder: --cache PATH")


def measure(wanted: Wanted, caches: Sequence[Cache], device: str) -> dict[str, Any]:
    """The content of gsnr.json.

    Raises:
        RecipeError: a cache is of another width than an SAE. DataError: there are too few rows.
        UserError: as `open_trained`.
    """
    opened = [open_trained(folder, lambda record: training_cache(record, caches), device)
              for folder in wanted.folders]
    for sae in opened:
        for cache in caches:
            if cache.d_model != sae.sae.d_in:
                raise RecipeError(f"{sae.name} takes activations of width {sae.sae.d_in:,}, and those of {cache.path} "
                                  f"are {cache.d_model:,} wide: another model's. Give a cache of its own: --cache NAME")
    keys = shared_conversations(caches, wanted.layer, wanted.split)
    results = [result for sae in opened for subset in wanted.subsets
               for result in _measure_subset(sae, subset, wanted, caches, keys, device)]
    return {
        "format_version": 1,
        "layer": wanted.layer,
        "split": wanted.split,
        "seed": wanted.seed,
        "intervals": {"level": LEVEL, "method": "delete-one jackknife over batches"},
        "saes": [{"sae": sae.name, "architecture": sae.record["architecture"], "cache_id": sae.record["cache_id"],
                  "trained_on": sae.record["cache"], "sparsity_coefficient": sae.coefficient,
                  "sparsity_coefficient_from": sae.coefficient_from, "policy": sae.record["policy"]}
                 for sae in opened],
        "streams": [{"cache": cache.name, "cache_id": cache.cache_id, "order": cache.identity.get("order"),
                     "num_conversations": len(found)} for cache, found in zip(caches, keys, strict=True)],
        "results": results,
    }


def _measure_subset(sae: TrainedSAE, subset: str, wanted: Wanted, caches: Sequence[Cache],
                    keys: Sequence[np.ndarray[Any, np.dtype[np.uint64]]], device: str) -> list[dict[str, Any]]:
    """One SAE on one subset of every cache, with equally many batches of each."""
    size = wanted.batch_size or sae.batch_size
    layer, split = wanted.layer, wanted.split
    rows = [ordered_rows(cache, layer, split, found, subset, wanted.seed, sae.policy, median_norm(cache, layer))
            for cache, found in zip(caches, keys, strict=True)]
    number = number_of_batches(rows, size, wanted.num_tokens, f"{sae.name}, {split} rows, {subset}")
    results = []
    for cache, order in zip(caches, rows, strict=True):
        with Progress(f"{sae.name} on {cache.name}, {subset}", total=2 * number, unit="batches") as progress:
            groups = measure_gsnr(_gradients(sae, cache, layer, order, size, device, progress), number, size)
        results.append({"sae": sae.name, "cache": cache.name, "subset": subset, "batch_size": size,
                        "num_batches": number, "groups": groups})
    return results


def _gradients(sae: TrainedSAE, cache: Cache, layer: int, rows: Ints, size: int, device: str,
               progress: Progress) -> Callable[[int], dict[str, Tensor]]:
    activations = cache.layer(layer)

    def gradients(number: int) -> dict[str, Tensor]:
        here = np.sort(rows[number * size : (number + 1) * size])
        raw = torch.from_numpy(activations[here].view(np.uint16)).view(torch.bfloat16)
        progress.advance(1)
        return sae.gradients(raw.to(device))

    return gradients

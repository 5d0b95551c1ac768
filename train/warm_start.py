"""Warm start: begin with the weights of a finished SAE, from a base model to its chat model, from layer to layer.

The source is an SAE of ours, or anybody's in a layout that `train.export.load_sae` opens, its decoder's rows brought
to unit norm. Its weights take raw activations (`train.export.folding`). With the new run's centre c and scale s,

    b_dec = (b_dec'' - c) s,    b_enc = b_enc'' s - b_dec W_enc,    threshold = threshold'' s

(and b_mag = b_mag'' s - exp(r_mag) b_dec W_enc of a gated SAE) they do to the new run's input x' = (x - c) s what
they did to x: before the first step a new SAE of the source's architecture, or one that knows its thresholds (JumpReLU
and Gated), has its latents and reconstructions, s times as large. What the source lacks (a threshold, from TopK to
JumpReLU) starts as it always does, and what the new SAE has no place for (a threshold, from BatchTopK to Standard) is
left out: more latents are active then. A penalty that follows an L0 begins with the coefficient that a source of ours
and of the same architecture ended with. The digest of the source is in the new SAE's recipe, and so in its name:
another source is another SAE.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.digests import file_digest
from shared.errors import CorruptError, RecipeError, StorageError
from shared.sealed_json import read_sealed
from train.architectures import SAE
from train.export import SAE_WEIGHTS, ExportedSAE, load_sae, weights_file
from train.export.exported import RUN, check_files, read_config
from train.export.saelens import CONFIG
from train.sparsity import CoefficientController
from train.statistics import InputStatistics


def read_source(folder: object, where: str) -> dict[str, Any]:
    """What a recipe keeps of the source in ``folder``: its name, architecture, sizes, cache, layer, weights' digest.

    Of one that was made elsewhere, what its config says in place of the cache; where it lies is no part of it.

    Raises:
        RecipeError: there is no finished SAE. CorruptError: its files are damaged. StorageError: one is missing.
    """
    if not isinstance(folder, str):
        raise RecipeError(f"{where}.warm_start must be the folder of an SAE; got {folder!r}.")
    path = Path(folder)
    if not (path / RUN).is_file():
        try:
            return _foreign_source(path, weights_file(path).stat().st_mtime_ns)
        except (RecipeError, StorageError) as error:
            raise RecipeError(f"{where}.warm_start: {folder!r} holds no finished SAE. Expected a folder such as "
                              f"runs/<cache>/layer<L>/<sae name>, or an SAE of another tool. {error}") from error
    run = read_sealed(path / RUN)
    check_files(path, run)
    config = read_config(path / CONFIG)
    return {"sae": run["name"], "architecture": run["architecture"], "d_in": config["d_in"], "d_sae": config["d_sae"],
            "cache_id": run["cache_id"], "layer": run["layer"], "weights": run["files"][SAE_WEIGHTS],
            "sparsity_coefficient": run["resolved"].get("sparsity_coefficient")}


@lru_cache(maxsize=64)
def _foreign_source(path: Path, changed: int) -> dict[str, Any]:
    """As `read_source`, read once for all points of a grid; ``changed`` is when the weights were."""
    source, digest = load_sae(path), file_digest(weights_file(path))
    return {"sae": f"{source.layout}-{digest[:6]}", "architecture": source.architecture, "d_in": source.d_in,
            "d_sae": source.d_sae, "cache_id": None, "layer": source.made_for.layer, "weights": digest,
            "made_for": vars(source.made_for)}


def start_from(sae: SAE, folder: str, source: Mapping[str, Any], statistics: InputStatistics) -> None:
    """Give ``sae``, on the CPU, the source's weights, those of its parameters that the source has.

    Args:
        source: what `read_source` said when the run was planned, with the digest that the weights had.
        statistics: scale and centre of the run that begins.

    Raises:
        CorruptError: the weights are others by now.
    """
    path = weights_file(Path(folder))
    if file_digest(path) != source["weights"]:
        raise CorruptError(f"{path} is not what it was when this training was planned. Bring it back, or give the "
                           "command again, to start from what is there now.")
    sae.start_from(unfold(load_sae(folder).with_unit_rows(), statistics))
    controller, coefficient = getattr(sae, "controller", None), source.get("sparsity_coefficient")
    if isinstance(controller, CoefficientController) and coefficient and source["architecture"] == sae.name:
        controller.start_at(coefficient)


@torch.no_grad()
def unfold(source: ExportedSAE, statistics: InputStatistics) -> dict[str, Tensor]:
    """The parameters with which an SAE does to scaled input what ``source`` does to raw; biases in float64 between."""
    scale, W_enc = statistics.scale, source.W_enc
    b_dec = (source.b_dec.double() - statistics.centre.cpu().double()) * scale
    unfolded = {
        "W_enc": W_enc,
        "b_enc": (source.b_enc.double() * scale - b_dec @ W_enc.double()).float(),
        "W_dec": source.W_dec,
        "b_dec": b_dec.float(),
    }
    if source.magnitude is not None:
        r_mag, b_mag = source.magnitude
        unfolded["r_mag"] = r_mag
        unfolded["b_mag"] = (b_mag.double() * scale - r_mag.double().exp() * (b_dec @ W_enc.double())).float()
    if source.threshold is not None:
        unfolded["threshold"] = (source.threshold.double() * scale).float()
    return unfolded

"""dictionary_learning's folder (its version 0.1.0): ``config.json`` and ``ae.pt``, which ``load_dictionary`` opens.

    dict_class                tensors                                                     encoder
    AutoEncoder               bias, encoder.weight, encoder.bias, decoder.weight          ReLU(W (x - bias) + b)
    AutoEncoderNew            encoder.weight, encoder.bias, decoder.weight, decoder.bias  ReLU(W x + b)
    GatedAutoEncoder          decoder_bias, r_mag, gate_bias, mag_bias, encoder.weight, decoder.weight
    AutoEncoderTopK           b_dec, encoder.*, decoder.weight, k, threshold              TopK(ReLU(W (x - b_dec) + b))
    BatchTopKSAE              the same                                                    threshold (one number)
    MatryoshkaBatchTopKSAE    W_enc, b_enc, W_dec, b_dec, k, threshold, group_sizes       threshold (one number)
    JumpReluAutoEncoder       W_enc, b_enc, W_dec, b_dec, threshold [d_sae]               threshold, of x W_enc + b_enc

encoder.weight is [d_sae, d_in], decoder.weight [d_in, d_sae], W_enc [d_in, d_sae], W_dec [d_sae, d_in]. A TopK's
threshold is not used unless asked for; -1 says that none was set. JumpReluAutoEncoder does not subtract b_dec: it is
folded into b_enc. ``load_dictionary`` scales the latents of an AutoEncoder so that its decoder has unit norms.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import storage
from shared.errors import CorruptError, RecipeError
from train.export.exported import (
    AGAIN,
    ExportedSAE,
    MadeFor,
    bias_after_subtraction,
    check_shapes,
    read_config,
    whole_number,
)
from train.pickled_tensors import read_pickled, write_pickled

WEIGHTS = "ae.pt"
CONFIG = "config.json"
LAYOUT = "dictionary_learning"

_CLASSES = {"standard": ("AutoEncoder", "StandardTrainer"), "gated": ("GatedAutoEncoder", "GatedSAETrainer"),
            "topk": ("AutoEncoderTopK", "TopKTrainer"), "batchtopk": ("BatchTopKSAE", "BatchTopKTrainer"),
            "matryoshka": ("MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer"),
            "jumprelu": ("JumpReluAutoEncoder", "JumpReluTrainer")}
"""dict_class and trainer_class by the architecture as it was trained."""

_NAMES = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc", "bias": "b_dec",
          "decoder.bias": "b_dec", "decoder_bias": "b_dec", "gate_bias": "b_enc", "mag_bias": "b_mag"}
"""Our names of their tensors; those that are not here have the same. Weights of a torch.nn.Linear are transposed."""

_READABLE = {"AutoEncoder": "standard", "AutoEncoderNew": "standard", "GatedAutoEncoder": "gated",
             "AutoEncoderTopK": "topk", "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu",
             "JumpReluAutoEncoder": "jumprelu"}
"""SAELens's architecture by dict_class."""

_log = logging.getLogger(__name__)


def write_dictionary(folder: Path, sae: ExportedSAE, run: Mapping[str, Any], group_sizes: list[int] | None) -> None:
    """Write a finished SAE. ``run`` is its run.json; ``group_sizes`` are a Matryoshka's.

    Raises:
        TryAgainError: the disk is full. StorageError: another failure to write.
    """
    architecture = str(run["architecture"])
    dict_class, trainer_class = _CLASSES[architecture]
    metadata = sae.config["metadata"]
    chosen = run["recipe"]["sae"]
    trainer = {
        "trainer_class": trainer_class,
        "dict_class": dict_class,
        "activation_dim": sae.d_in,
        "dict_size": sae.d_sae,
        **({"k": chosen["k"]} if "k" in chosen else {}),
        "layer": run["layer"],
        "lm_name": metadata["model_name"] or "",
        "submodule_name": f"resid_post_layer_{run['layer']}",
        "lr": run["resolved"]["lr"],
        "steps": run["resolved"]["num_steps"],
        "seed": chosen["seed"],
    }
    buffer = {"d_submodule": sae.d_in, "io": "out", "ctx_len": metadata["context_size"]}
    storage.make_folder(folder)
    write_pickled(folder / WEIGHTS, _tensors(dict_class, sae, chosen.get("k"), group_sizes))
    text = json.dumps({"trainer": trainer, "buffer": buffer, "sae_granary": metadata["sae_granary"]}, indent=1) + "\n"
    storage.write_file(folder / CONFIG, text.encode())


def _tensors(dict_class: str, sae: ExportedSAE, k: int | None, group_sizes: list[int] | None) -> dict[str, Tensor]:
    linear = {"encoder.weight": sae.W_enc.t(), "decoder.weight": sae.W_dec.t()}
    matrices = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if dict_class == "AutoEncoder":
        return {**linear, "encoder.bias": sae.b_enc, "bias": sae.b_dec}
    if dict_class == "GatedAutoEncoder":
        assert sae.magnitude is not None
        r_mag, b_mag = sae.magnitude
        return {**linear, "decoder_bias": sae.b_dec, "gate_bias": sae.b_enc, "r_mag": r_mag, "mag_bias": b_mag}
    if dict_class == "JumpReluAutoEncoder":
        assert sae.threshold is not None
        return {**matrices, "b_enc": bias_after_subtraction(sae.b_enc, -sae.b_dec, sae.W_enc),
                "threshold": sae.threshold}
    assert k is not None
    threshold = -1.0
    if sae.threshold is not None:
        threshold = float(sae.threshold[0])
        assert bool((sae.threshold == threshold).all())  # of BatchTopK kinds it is one number
    choice = {"k": torch.tensor(k, dtype=torch.int32), "threshold": torch.tensor(threshold)}
    if dict_class == "MatryoshkaBatchTopKSAE":
        return {**matrices, "b_enc": sae.b_enc, **choice, "group_sizes": torch.tensor(group_sizes)}
    return {**linear, "encoder.bias": sae.b_enc, "b_dec": sae.b_dec, **choice}


def read_dictionary(folder: Path, device: str | torch.device = "cpu") -> ExportedSAE:
    """Open a folder; it does what the class that ``load_dictionary`` makes of it does.

    Raises:
        StorageError: a file cannot be read. CorruptError: the files do not fit each other, or are not of this layout.
        RecipeError: it is of a class that is not known here.
    """
    config = read_config(folder / CONFIG)
    trainer = config.get("trainer")
    dict_class = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or not isinstance(dict_class, str):
        raise CorruptError(f"{folder / CONFIG} has no trainer.dict_class: it is no config of dictionary_learning. "
                           f"{AGAIN}")
    if dict_class not in _READABLE:
        raise RecipeError(f"{folder / CONFIG}: trainer.dict_class must be one of {', '.join(_READABLE)}; got "
                          f"{dict_class!r}.")
    architecture = _READABLE[dict_class]
    tensors, k = _read_tensors(folder, trainer, device)
    d_in, d_sae = tensors["W_enc"].shape if tensors.get("W_enc", torch.zeros(0)).dim() == 2 else (0, 0)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in),
                                          "b_dec": (d_in,)}
    if architecture == "gated":
        shapes |= {"r_mag": (d_sae,), "b_mag": (d_sae,)}
    elif architecture == "jumprelu":
        shapes["threshold"] = (d_sae,) if dict_class == "JumpReluAutoEncoder" else ()
    else:
        tensors.pop("threshold", None)  # a TopK's is for another way to encode
    check_shapes(folder / WEIGHTS, CONFIG, tensors, shapes)
    if architecture == "topk" and (k is None or not 1 <= k <= d_sae):
        raise CorruptError(f"{folder / CONFIG}: trainer.k is {trainer.get('k')!r}, expected a number from 1 to "
                           f"{d_sae:,}. {AGAIN}")
    return _as_it_encodes(dict_class, tensors, k, config)


def _read_tensors(folder: Path, trainer: Mapping[str, Any], device: str | torch.device) -> tuple[dict[str, Tensor],
                                                                                                  int | None]:
    """The tensors by our names, float32, and k."""
    tensors = {}
    for name, tensor in read_pickled(folder / WEIGHTS, device).items():
        is_linear = name in {"encoder.weight", "decoder.weight"} and tensor.dim() == 2
        tensors[_NAMES.get(name, name)] = (tensor.t() if is_linear else tensor).float()
    tensors.pop("group_sizes", None)
    stored, asked = tensors.pop("k", None), whole_number(trainer.get("k"))
    k = asked if stored is None or stored.numel() != 1 or not stored.isfinite() else int(stored)
    if asked is not None and asked != k:
        raise CorruptError(f"{folder / CONFIG}: trainer.k is {asked:,}, but {WEIGHTS} was made with {k:,}. {AGAIN}")
    return tensors, k


def _as_it_encodes(dict_class: str, tensors: Mapping[str, Tensor], k: int | None,
                   config: dict[str, Any]) -> ExportedSAE:
    architecture = _READABLE[dict_class]
    W_enc, b_enc, W_dec, b_dec = (tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    threshold = tensors.get("threshold")
    if dict_class in {"AutoEncoderNew", "JumpReluAutoEncoder"}:
        b_enc = bias_after_subtraction(b_enc, b_dec, W_enc)
    elif threshold is not None:
        if threshold < 0:
            _log.warning("The %s has a threshold of %g: none was set while it was trained, and every positive latent "
                         "is active.", dict_class, float(threshold))
        threshold = threshold.expand(len(b_enc))
    trainer = config["trainer"]
    model, hook = trainer.get("lm_name"), trainer.get("submodule_name")
    made_for = MadeFor(model if isinstance(model, str) and model else None, whole_number(trainer.get("layer")),
                       hook if isinstance(hook, str) and hook else None)
    sae = ExportedSAE(
        architecture=architecture, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, threshold=threshold,
        magnitude=(tensors["r_mag"], tensors["b_mag"]) if architecture == "gated" else None,
        k=k if architecture == "topk" else None, config=config, layout=LAYOUT, made_for=made_for)
    return sae.with_unit_rows() if dict_class == "AutoEncoder" else sae

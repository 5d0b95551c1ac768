"""The folder of an SAE, which is SAELens 6's: ``cfg.json`` and ``sae_weights.safetensors``.

``SAE.load_from_disk`` opens what is written here, and what it opens is read here, SAELens 5's flat cfg.json too, where
it takes raw activations of the residual stream. SAELens has no "batchtopk" or "matryoshka" for use after training: with
their threshold they are a "jumprelu". ``metadata.sae_lens_version`` must be there, or the loader takes the file for an
old one and drops the metadata; keys that it does not know survive, so ours stand in a nested table.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared import storage
from shared.errors import CorruptError, RecipeError
from shared.provenance import TOOL_VERSION
from shared.reading.cache import Cache
from train.architectures import SAE
from train.architectures.topk import TopKSAE
from train.export.exported import (
    AGAIN,
    ExportedSAE,
    MadeFor,
    bias_after_subtraction,
    check_shapes,
    read_config,
    whole_number,
)
from train.export.folding import fold
from train.statistics import InputStatistics
from train.tensor_files import read_tensors, write_tensors

SAE_WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"
LAYOUT = "saelens"

LAYOUT_VERSION = "6.54.12"
"""The version of SAELens whose layout this is."""

_ON_DISK = {"standard": "standard", "gated": "gated", "jumprelu": "jumprelu", "topk": "topk", "batchtopk": "jumprelu",
            "matryoshka": "jumprelu"}


def write_sae(folder: Path, sae: SAE, statistics: InputStatistics, metadata: Mapping[str, Any]) -> None:
    """Write cfg.json and the weights, scale and centre folded in. ``metadata`` is `sae_metadata`.

    Raises:
        TryAgainError: the disk is full. StorageError: another failure to write.
    """
    storage.make_folder(folder)
    tensors: dict[str, Tensor] = fold(sae, statistics)
    partial = storage.partial_of(folder / SAE_WEIGHTS)
    write_tensors(partial, tensors, {"format": "pt"})
    storage.publish(partial, folder / SAE_WEIGHTS)
    text = json.dumps(config_dict(sae, metadata), indent=1) + "\n"
    storage.write_file(folder / CONFIG, text.encode())


def config_dict(sae: SAE, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of cfg.json."""
    architecture = _ON_DISK[sae.name]
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if architecture == "topk":
        assert isinstance(sae, TopKSAE)
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    return config | {"metadata": {"training_architecture": sae.name, **metadata}}


def sae_metadata(cache: Cache, layer: int, *, l0: float, num_dead: int, policy: Mapping[str, Any],
                 name: str) -> dict[str, Any]:
    """What consumers look up: model, hook point, data, context; and, in a table of our own, how it was made."""
    identity = cache.identity
    model = _table(identity, "model")
    dataset = _table(identity, "dataset")
    order = _table(identity, "order")
    return {
        "sae_lens_version": LAYOUT_VERSION,
        "sae_lens_training_version": None,
        "model_name": model.get("name"),
        "model_class_name": "HookedTransformer",
        "hook_name": f"blocks.{layer}.hook_resid_post",
        "hf_hook_name": f"model.layers.{layer}",
        "hook_head_index": None,
        "dataset_path": dataset.get("name"),
        "context_size": _context_size(identity),
        "prepend_bos": order.get("bos") is not None,
        "exclude_special_tokens": False,
        "seqpos_slice": [None],
        "disable_concat_sequences": order.get("kind") != "block",
        "sequence_separator_token": order.get("separator"),
        "neuronpedia_id": None,
        "l0": l0,
        "num_dead_features": num_dead,
        "sae_granary": {
            "tool_version": TOOL_VERSION,
            "name": name,
            "cache_id": cache.cache_id,
            "layer": layer,
            "site": "resid_post",
            "token_policy": dict(policy),
            # Model, data, tokenizer and template digests, template variables, order: what the rows were.
            "identity": dict(identity),
        },
    }


def _table(identity: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = identity.get(key)
    return dict(value) if isinstance(value, Mapping) else {"name": value}


def _context_size(identity: Mapping[str, Any]) -> int | None:
    """Tokens of the longest sequence: of a block, or of a conversation."""
    size = _table(identity, "order").get("length") or identity.get("max_length")
    return int(size) if isinstance(size, int) else None


def read_sae(folder: Path, device: str | torch.device = "cpu") -> ExportedSAE:
    """Open a folder; it does what SAELens's SAE does, in float32.

    Raises:
        StorageError: a file cannot be read. CorruptError: the files do not fit each other, or are not of this layout.
        RecipeError: it is of a kind that is not known here, or does not take raw activations.
    """
    config = read_config(folder / CONFIG)
    architecture, k = _architecture(folder, config)
    d_in, d_sae = whole_number(config.get("d_in")), whole_number(config.get("d_sae"))
    if not d_in or not d_sae:
        raise CorruptError(f"{folder / CONFIG} names no d_in and d_sae: it is no config of SAELens. {AGAIN}")
    gated = architecture == "gated"
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    shapes |= dict.fromkeys(("b_gate", "r_mag", "b_mag") if gated else ("b_enc",), (d_sae,))
    if architecture == "jumprelu":
        shapes["threshold"] = (d_sae,)
    found = read_tensors(folder / SAE_WEIGHTS, device)
    check_shapes(folder / SAE_WEIGHTS, CONFIG, found, shapes)
    if architecture == "topk" and not 1 <= (k or 0) <= d_sae:
        raise CorruptError(f"{folder / CONFIG}: k is {k!r}, expected a number from 1 to {d_sae:,}. {AGAIN}")
    tensors = {name: tensor.float() for name, tensor in found.items()}
    W_enc, W_dec, b_dec = tensors["W_enc"], tensors["W_dec"], tensors["b_dec"]
    b_enc, b_mag = tensors["b_gate" if gated else "b_enc"], tensors.get("b_mag")
    if not config.get("apply_b_dec_to_input", True):
        b_enc = bias_after_subtraction(b_enc, b_dec, W_enc)
        if b_mag is not None:
            b_mag = bias_after_subtraction(b_mag, b_dec, W_enc * tensors["r_mag"].exp())
    sae = ExportedSAE(
        architecture=architecture, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec,
        threshold=tensors.get("threshold"), magnitude=None if b_mag is None else (tensors["r_mag"], b_mag),
        k=k if architecture == "topk" else None, config=config, layout=LAYOUT, made_for=_made_for(config))
    if architecture == "topk" and config.get("rescale_acts_by_decoder_norm"):
        return sae.with_unit_rows()  # it chooses by, and gives, latents as of such a decoder
    return sae


def _architecture(folder: Path, config: Mapping[str, Any]) -> tuple[str, int | None]:
    """The architecture of a cfg.json, and k."""
    path = folder / CONFIG
    architecture, k = config.get("architecture", "standard"), config.get("k")
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))  # SAELens 5
    if activation == "topk":
        architecture, k = "topk", _dict(config, "activation_fn_kwargs").get("k", k)
    known = sorted(set(_ON_DISK.values()))
    if architecture not in known:
        raise RecipeError(f"{path}: architecture must be one of {', '.join(known)}; got {architecture!r}.")
    if activation not in {"relu", "topk"}:
        raise RecipeError(f"{path}: activation_fn must be relu or topk; got {activation!r}.")
    for key, plain in (("normalize_activations", {"none", None, False}), ("reshape_activations", {"none", None}),
                       ("finetuning_scaling_factor", {None, False})):
        value = config.get(key)
        if not isinstance(value, str | bool | None) or value not in plain:
            raise RecipeError(f"{path}: {key} is {value!r}. Expected none: an SAE that takes raw activations as they "
                              "are. Fold it into the weights with SAELens first, and save the SAE again.")
    return architecture, whole_number(k)


def _made_for(config: Mapping[str, Any]) -> MadeFor:
    metadata = _dict(config, "metadata") or config
    model, hook = metadata.get("model_name"), metadata.get("hook_name", metadata.get("hook_point"))
    hook = hook if isinstance(hook, str) else None
    place = re.search(r"(?:blocks|layers)\.(\d+)(?:\.|$)", hook or "")
    layer = int(place[1]) if place else None
    if layer is not None and str(hook).endswith(".hook_resid_pre"):
        layer -= 1  # what goes into a layer comes out of the one before
    return MadeFor(model if isinstance(model, str) else None, layer, hook)


def _dict(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}

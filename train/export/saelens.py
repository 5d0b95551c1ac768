"""The folder of an SAE, which is SAELens 6's: ``cfg.json`` and ``sae_weights.safetensors``.

``SAE.load_from_disk`` opens it. SAELens has no "batchtopk" or "matryoshka" for use after training: with their
threshold they are a "jumprelu". ``metadata.sae_lens_version`` must be there, or the loader takes the file for an old
one and drops the metadata; keys that it does not know survive, so ours stand in a nested table.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shared import storage
from shared.provenance import TOOL_VERSION
from shared.reading.cache import Cache
from train.architectures import SAE
from train.architectures.topk import TopKSAE
from train.export.folding import fold
from train.statistics import InputStatistics
from train.tensor_files import write_tensors

SAE_WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"

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
    partial = folder / f".{SAE_WEIGHTS}.partial"
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

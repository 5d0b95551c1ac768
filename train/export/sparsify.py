"""sparsify's folder (eai-sparsify 1.3): ``cfg.json`` and ``sae.safetensors``, which ``SparseCoder`` opens.

    latents = the k largest of ReLU(W (x - b_dec) + b)        encoder.weight [d_sae, d_in], encoder.bias [d_sae]
    x_hat   = latents W_dec + b_dec                           W_dec [d_sae, d_in], b_dec [d_in]

It has no threshold: of what we train only TopK can be written. Where several hook points lie in one folder, each is in
one of its own that is named after it: ``layers.9``, which is the output of decoder layer 9.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from shared import storage
from shared.errors import CorruptError, RecipeError
from train.export.exported import AGAIN, ExportedSAE, MadeFor, check_shapes, read_config, whole_number
from train.tensor_files import read_tensors, write_tensors

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
LAYOUT = "sparsify"


def write_sparse_coder(folder: Path, sae: ExportedSAE) -> None:
    """Write a TopK SAE.

    Raises:
        TryAgainError: the disk is full. StorageError: another failure to write.
    """
    assert sae.k is not None
    storage.make_folder(folder)
    partial = storage.partial_of(folder / WEIGHTS)
    write_tensors(partial, {"encoder.weight": sae.W_enc.t(), "encoder.bias": sae.b_enc, "W_dec": sae.W_dec,
                            "b_dec": sae.b_dec}, {"format": "pt"})
    storage.publish(partial, folder / WEIGHTS)
    config: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, sae.d_sae // sae.d_in),  # not used where num_latents is given
        "normalize_decoder": True,
        "num_latents": sae.d_sae,
        "k": sae.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": sae.d_in,
        "sae_granary": sae.config["metadata"]["sae_granary"],
    }
    storage.write_file(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def read_sparse_coder(folder: Path, device: str | torch.device = "cpu") -> ExportedSAE:
    """Open a folder; it does what its ``SparseCoder`` does.

    Raises:
        StorageError: a file cannot be read. CorruptError: the files do not fit each other.
        RecipeError: it is no sparse autoencoder: a transcoder, a skip connection, another activation.
    """
    config = read_config(folder / CONFIG)
    d_in, k = whole_number(config.get("d_in")), whole_number(config.get("k"))
    if not d_in or not k:
        raise CorruptError(f"{folder / CONFIG} names no d_in and k: it is no config of sparsify. {AGAIN}")
    if config.get("transcode") or config.get("skip_connection"):
        raise RecipeError(f"{folder} is a transcoder: it does not reconstruct the activations that it takes. Expected "
                          "a sparse autoencoder.")
    if config.get("activation", "topk") != "topk" or config.get("signed"):
        raise RecipeError(f"{folder / CONFIG}: activation must be \"topk\", without sign; got "
                          f"{config.get('activation')!r}.")
    tensors = read_tensors(folder / WEIGHTS, device)
    d_sae = whole_number(config.get("num_latents")) or d_in * (whole_number(config.get("expansion_factor")) or 0)
    check_shapes(folder / WEIGHTS, CONFIG, tensors, {"encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,),
                                                     "W_dec": (d_sae, d_in), "b_dec": (d_in,)})
    if k > d_sae:
        raise CorruptError(f"{folder / CONFIG}: k is {k:,}, expected a number from 1 to {d_sae:,}. {AGAIN}")
    found = {name: tensor.float() for name, tensor in tensors.items()}
    hook = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)", folder.name)
    return ExportedSAE(
        architecture="topk", W_enc=found["encoder.weight"].t(), b_enc=found["encoder.bias"], W_dec=found["W_dec"],
        b_dec=found["b_dec"], threshold=None, magnitude=None, k=k, config=config, layout=LAYOUT,
        made_for=MadeFor(None, int(hook[1]) if hook else None, folder.name if hook else None))

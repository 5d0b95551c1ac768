"""Folders of other tools, written by hand in their documented layouts, and what their encoders compute, in float64."""

import json

import torch
from safetensors.torch import save_file

D_IN, D_SAE, K = 16, 40, 3


def random_weights(seed=0):
    """Matrices and biases with a decoder bias far from zero, and thresholds that a few pre-activations pass."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return {"W_enc": draw(D_IN, D_SAE) / 4, "b_enc": draw(D_SAE) / 4, "W_dec": draw(D_SAE, D_IN) / 3,
            "b_dec": draw(D_IN) + 2, "threshold": draw(D_SAE).abs() + 0.5, "r_mag": draw(D_SAE) / 5,
            "b_mag": draw(D_SAE) / 4, "bias_of_input": draw(D_IN)}


def rows():
    """Raw rows [64, D_IN] around the decoder bias."""
    return torch.randn(64, D_IN, generator=torch.Generator().manual_seed(9)) * 2 + 2


def top(pre_acts, k=K):
    """The k largest, if they are positive."""
    values, indices = pre_acts.topk(k, dim=1)
    return torch.zeros_like(pre_acts).scatter(1, indices, values.relu())


def jump(pre_acts, threshold):
    return pre_acts * (pre_acts > threshold) * (pre_acts > 0)


def write_saelens(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", **config}))
    return folder


def write_dictionary(folder, dict_class, tensors, **trainer):
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    config = {"dict_class": dict_class, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 3, "lm_name": "org/fake",
              "submodule_name": "resid_post_layer_3", **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": config, "buffer": {"ctx_len": 128}}))
    return folder


def write_sparsify(folder, tensors, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "num_latents": D_SAE, "k": K, "d_in": D_IN,
                                                 "transcode": False, "skip_connection": False, **config}))
    return folder


def sparse_coder(w):
    """A SparseCoder's tensors."""
    return {"encoder.weight": w["W_enc"].t(), "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}


def linear(w, bias):
    """The tensors of a dictionary with torch.nn.Linear; ``bias`` is the name of its decoder bias."""
    return {"encoder.weight": w["W_enc"].t().contiguous(), "encoder.bias": w["b_enc"],
            "decoder.weight": w["W_dec"].t().contiguous(), bias: w["b_dec"]}

"""Every architecture's loss once more, from its docstring, in float64 and for plain autograd.

A reference takes the SAE's parameters as float64 tensors by name, a batch x [batch, d_in], and the SAE for settings
and counts. `CASES` has those of the dict of architectures, with JumpReLU's three losses apart.
"""

import torch

D_IN, D_SAE, BATCH = 16, 40, 200
SILENT = slice(10, 30)  # latents that have not fired for long


def squared(error):
    return error.square().sum(1).mean()


def straight_through(value, slope_of):
    """``value``, with the gradient of ``slope_of``."""
    return value.detach() + slope_of - slope_of.detach()


def standard(p, x, sae):
    latents = torch.relu(x @ p["W_enc"] + p["b_enc"])
    return squared(x - latents @ p["W_dec"] - p["b_dec"]) + 0.7 * latents.sum(1).mean(), latents


def gated(p, x, sae):
    gate = x @ p["W_enc"] + p["b_enc"]
    magnitude = x @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]
    latents = (gate > 0) * torch.relu(magnitude)
    opened = torch.relu(gate)
    auxiliary = squared(x - opened @ p["W_dec"].detach() - p["b_dec"].detach())
    return squared(x - latents @ p["W_dec"] - p["b_dec"]) + 0.7 * opened.sum(1).mean() + auxiliary, latents


def rectangle(z, threshold, eps):
    """Straight line of slope 1/eps within eps/2 of the threshold: its derivative is the rectangle."""
    return ((z - threshold) / eps + 0.5).clamp(0, 1)


def jumprelu(p, x, sae):
    z, threshold, eps = x @ p["W_enc"] + p["b_enc"], p["theta"], sae.jump.bandwidth
    # The gate alone is differentiated through the rectangle, and there z counts as what the threshold is.
    gate = rectangle(z, threshold, eps)
    latents = z * (z > threshold) + threshold.detach() * (gate - gate.detach())
    pull = torch.relu(threshold - z)[:, SILENT].sum(1).mean()
    penalty = torch.tanh(4 * latents).sum(1).mean()
    return squared(x - latents @ p["W_dec"] - p["b_dec"]) + 0.7 * penalty + sae.pre_act_coefficient * pull, latents


def jumprelu_to_threshold(z, threshold, eps):
    """Latents and gate with the rectangle's gradient to the threshold alone."""
    gate = rectangle(z.detach(), threshold, eps)
    latents = z * (z > threshold) + threshold.detach() * (gate - gate.detach())
    return latents, straight_through((z > threshold).double(), gate)


def jumprelu_step(p, x, sae):
    z, threshold = x @ p["W_enc"] + p["b_enc"], p["theta"].exp()
    latents, gate = jumprelu_to_threshold(z, threshold, sae.jump.bandwidth)
    return squared(x - latents @ p["W_dec"] - p["b_dec"]) + 0.7 * gate.sum(1).mean(), latents


def jumprelu_target_l0(p, x, sae):
    z, threshold = x @ p["W_enc"] + p["b_enc"], p["theta"]
    latents, gate = jumprelu_to_threshold(z, threshold, sae.jump.bandwidth)
    pull = torch.relu(threshold - z)[:, SILENT].sum(1).mean()
    penalty = (2 / 5 * (gate.sum(1) - 5).square()).mean()
    return squared(x - latents @ p["W_dec"] - p["b_dec"]) + 0.7 * penalty + sae.pre_act_coefficient * pull, latents


def auxk(p, x, x_hat):
    e = (x - x_hat).detach()
    dead = torch.relu(x @ p["W_enc"] + p["b_enc"])[:, SILENT]
    chosen = torch.zeros_like(dead).scatter(1, dead.topk(3, dim=1).indices, 1.0)
    e_hat = dead * chosen @ p["W_dec"][SILENT]
    return D_IN / 4 * (e - e_hat).square().sum() / (e - e.mean(0)).square().sum()


def topk(p, x, sae):
    z = x @ p["W_enc"] + p["b_enc"]
    latents = torch.relu(z) * torch.zeros_like(z).scatter(1, z.topk(5, dim=1).indices, 1.0)
    x_hat = latents @ p["W_dec"] + p["b_dec"]
    return squared(x - x_hat) + auxk(p, x, x_hat), latents


def batchtopk_latents(p, x):
    z = x @ p["W_enc"] + p["b_enc"]
    kept = torch.zeros_like(z).flatten().scatter(0, z.flatten().topk(5 * len(x)).indices, 1.0)
    return torch.relu(z) * kept.view_as(z)


def batchtopk(p, x, sae):
    latents = batchtopk_latents(p, x)
    x_hat = latents @ p["W_dec"] + p["b_dec"]
    return squared(x - x_hat) + auxk(p, x, x_hat), latents


def matryoshka(p, x, sae):
    latents = batchtopk_latents(p, x)
    prefixes = [latents[:, :width] @ p["W_dec"][:width] + p["b_dec"] for width in (4, 20, 40)]
    return sum(squared(x - x_hat) for x_hat in prefixes) / 3 + auxk(p, x, prefixes[-1]), latents


TOPK = {"k": 5, "k_aux": 3}
COEFFICIENT = {"sparsity_coefficient": 0.7, "coefficient_warmup": 0, "threshold_init": 0.4}
CASES = {
    "standard": ("standard", standard, {"l1_coefficient": 0.7, "coefficient_warmup": 0}),
    "gated": ("gated", gated, {"l1_coefficient": 0.7, "coefficient_warmup": 0}),
    "jumprelu-tanh": ("jumprelu", jumprelu, {**COEFFICIENT, "bandwidth": 1.5, "pre_act_coefficient": 0.01}),
    "jumprelu-step": ("jumprelu", jumprelu_step, {**COEFFICIENT, "loss": "step", "bandwidth": 0.5}),
    "jumprelu-target_l0": ("jumprelu", jumprelu_target_l0, {
        **COEFFICIENT, "loss": "target_l0", "l0": 5, "bandwidth": 0.5, "pre_act_coefficient": 0.01}),
    "topk": ("topk", topk, TOPK),
    "batchtopk": ("batchtopk", batchtopk, TOPK),
    "matryoshka": ("matryoshka", matryoshka, {**TOPK, "prefixes": (0.1, 0.5)}),
}
"""By case: the architecture, its reference, and the fields that the reference has as numbers."""

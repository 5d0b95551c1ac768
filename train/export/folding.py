"""Fold scale and centre into an SAE's weights, so that it takes raw activations.

Trained on x' = (x - c) s with z' = x' W_enc + b_enc and x'_hat = latents' W_dec + b_dec. Dividing latents,
biases and thresholds by s, and letting the encoder subtract the new b_dec as SAELens does:

    b_dec'' = c + b_dec / s
    b_enc'' = (b_enc + b_dec W_enc) / s
    z''     = (x - b_dec'') W_enc + b_enc''  = z' / s,     threshold'' = threshold / s

W_enc and the unit rows of W_dec stay as they are, and TopK chooses the same latents. Gated's b_enc is the gate's bias,
which SAELens calls b_gate, and its magnitudes x' W_enc exp(r_mag) + b_mag fold alike:

    b_mag'' = (b_mag + exp(r_mag) b_dec W_enc) / s
"""

import torch
from torch import Tensor

from train.architectures import SAE
from train.architectures.gated import GatedSAE
from train.statistics import InputStatistics


@torch.no_grad()
def fold(sae: SAE, statistics: InputStatistics) -> dict[str, Tensor]:
    """SAELens's tensors of the architecture, float32 on the CPU; sums in float64.

    W_enc, W_dec, b_dec and b_enc, with a threshold where there is one; gated has b_gate, b_mag and r_mag for b_enc.
    """
    scale = statistics.scale
    W_enc, b_enc = sae.W_enc.detach().cpu(), sae.b_enc.detach().cpu().double()
    b_dec, centre = sae.b_dec.detach().cpu().double(), statistics.centre.cpu().double()
    of_b_dec = b_dec @ W_enc.double()
    folded = {
        "W_enc": W_enc.contiguous(),
        "b_enc": ((b_enc + of_b_dec) / scale).float(),
        "W_dec": sae.W_dec.detach().cpu().contiguous(),
        "b_dec": (centre + b_dec / scale).float(),
    }
    if isinstance(sae, GatedSAE):
        r_mag, b_mag = sae.r_mag.detach().cpu(), sae.b_mag.detach().cpu().double()
        folded["b_gate"] = folded.pop("b_enc")
        folded["b_mag"] = ((b_mag + r_mag.double().exp() * of_b_dec) / scale).float()
        folded["r_mag"] = r_mag
    threshold = getattr(sae, "threshold", None)
    if threshold is not None:
        folded["threshold"] = (threshold.detach().cpu().double() / scale).float()
    return folded

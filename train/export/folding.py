"""Fold scale and centre into an SAE's weights, so that it takes raw activations.

Trained on x' = (x - c) s with z' = x' W_enc + b_enc and x'_hat = latents' W_dec + b_dec. Dividing latents,
biases and thresholds by s, and letting the encoder subtract the new b_dec as SAELens does:

    b_dec'' = c + b_dec / s
    b_enc'' = (b_enc + b_dec W_enc) / s
    z''     = (x - b_dec'') W_enc + b_enc''  = z' / s,     threshold'' = threshold / s

W_enc and the unit rows of W_dec stay as they are, and TopK chooses the same latents.
"""

import torch
from torch import Tensor

from train.architectures import SAE
from train.statistics import InputStatistics


@torch.no_grad()
def fold(sae: SAE, statistics: InputStatistics) -> dict[str, Tensor]:
    """W_enc, b_enc, W_dec, b_dec and, where there is one, threshold, float32 on the CPU; sums in float64."""
    scale = statistics.scale
    W_enc, b_enc = sae.W_enc.detach().cpu(), sae.b_enc.detach().cpu().double()
    b_dec, centre = sae.b_dec.detach().cpu().double(), statistics.centre.cpu().double()
    folded = {
        "W_enc": W_enc.contiguous(),
        "b_enc": ((b_enc + b_dec @ W_enc.double()) / scale).float(),
        "W_dec": sae.W_dec.detach().cpu().contiguous(),
        "b_dec": (centre + b_dec / scale).float(),
    }
    threshold = getattr(sae, "threshold", None)
    if threshold is not None:
        folded["threshold"] = (threshold.detach().cpu().double() / scale).float()
    return folded

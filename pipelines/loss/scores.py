"""Cross-entropy and KL divergence of predictions, token by token, from what the model's head is given.

With logits a of the model as it is and b of the model with something else in the place of a layer's output, for a
token that turns out to be y:

    CE(b) = log sum exp b - b_y                                                                       in nats
    KL    = sum_v p_v (log p_v - log q_v) = log sum exp b - log sum exp a - sum_v p_v (b_v - a_v)     in nats

with p = softmax(a) and q = softmax(b). In this form equal logits give a KL of exactly 0, and no probability is rounded
to 0 before its logarithm is taken. Everything is float32, by a few rows at a time, so that logits
[tokens, vocabulary] never stand in memory whole.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from pipelines.loss.split_model import SplitModel
from train.evaluation.metrics import Floats

Key = TypeVar("Key", bound=Hashable)

_PIECE_BYTES = {"cpu": 30 << 20, "cuda": 512 << 20}
"""Of logits at a time. The C library gives tensors of 32 MiB and more back to the system each time, and takes new
pages for the next one."""


@dataclass(frozen=True)
class Scores:
    """What some predictions cost, float64 ``[predictions]``, in nats."""

    ce: Floats
    kl: Floats


@torch.inference_mode()
def score(model: SplitModel, clean: Tensor, spliced: Mapping[Key, Tensor], targets: Tensor,
          ) -> tuple[Floats, dict[Key, Scores]]:
    """CE of the model's own predictions, and CE and KL of those that are to be compared with them.

    Args:
        clean: what `SplitModel.rest` gave, ``[predictions, d_model]``.
        spliced: the same with something else in the place of the layer's output, by name.
        targets: ids of the tokens that came ``[predictions]``.
    """
    ce = torch.empty(len(targets))
    found = {name: (torch.empty(len(targets)), torch.empty(len(targets))) for name in spliced}
    size = max(1, _PIECE_BYTES[targets.device.type] // (4 * model.vocabulary))
    for start in range(0, len(targets), size):
        here = slice(start, start + size)
        target = targets[here, None]
        a = model.logits(clean[here])
        top = a.amax(1, keepdim=True)
        weights = (a - top).exp_()
        total = weights.sum(1)
        log_total_a = total.log() + top[:, 0]
        ce[here] = log_total_a - a.gather(1, target)[:, 0]
        for name, hidden in spliced.items():
            b = model.logits(hidden[here])
            log_total_b = _log_sum_exp(b)
            found[name][0][here] = log_total_b - b.gather(1, target)[:, 0]
            b = b.sub_(a)
            found[name][1][here] = log_total_b - log_total_a - torch.linalg.vecdot(weights, b) / total
    return _float64(ce), {name: Scores(_float64(ce), _float64(kl)) for name, (ce, kl) in found.items()}


def _log_sum_exp(logits: Tensor) -> Tensor:
    """log sum exp of rows ``[n, v]``: the same operations as for the model's own logits, so that equal ones cancel."""
    top = logits.amax(1, keepdim=True)
    return (logits - top).exp_().sum(1).log() + top[:, 0]


def _float64(values: Tensor) -> Floats:
    return values.double().numpy().astype(np.float64, copy=False)

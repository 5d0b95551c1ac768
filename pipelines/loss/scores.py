"""Cross-entropy and KL divergence of predictions, token by token, from what the model's head is given.

With p and q the probabilities that the model gives as it is and with something else in the place of a layer's output,
for a token that turns out to be y:

    CE = -log q_y                                  in nats
    KL = sum_v p_v log p_v - sum_v p_v log q_v     in nats

from log-softmax, which takes no logarithm of a probability that was rounded to 0. Equal logits give a KL of exactly 0:
both sums are then the same operations on the same numbers. Everything is float32, by a few rows at a time, so that
logits [tokens, vocabulary] never stand in memory whole; a row of them is read as few times as torch's operations allow.
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
        log_p = torch.log_softmax(model.logits(clean[here]), 1)
        ce[here] = -log_p.gather(1, target)[:, 0]
        p = log_p.exp()
        negentropy = log_p.mul_(p).sum(1)
        for name, hidden in spliced.items():
            log_q = torch.log_softmax(model.logits(hidden[here]), 1)
            found[name][0][here] = -log_q.gather(1, target)[:, 0]
            found[name][1][here] = negentropy - log_q.mul_(p).sum(1)
    return _float64(ce), {name: Scores(_float64(ce), _float64(kl)) for name, (ce, kl) in found.items()}


def _float64(values: Tensor) -> Floats:
    return values.double().numpy().astype(np.float64, copy=False)

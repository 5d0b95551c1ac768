"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the k * batch largest pre-activations of a batch.

    latents = pre_acts where pre_acts >= t(batch), else 0;   t(batch) so that k * batch of them are kept
    loss    as TopK's (`train.architectures.topk`), AuxK included

Rows that need more latents take them from rows that need fewer. After training a row must not depend on its
neighbours, so one threshold stands in for t(batch). While training it is the average of t(batch) over recent
batches (exponential, with bias correction, over a fiftieth of the run, 5 to 100 steps: it falls with the learning rate,
and a longer memory stays over it); at the end it is set from training rows with the final weights,
so that their mean L0 is k. On disk this is a JumpReLU SAE.
"""

import numpy as np
import torch
from torch import Tensor

from train.architectures.base import Loss, RunLength
from train.architectures.selection import largest
from train.architectures.topk import TopKConfig, TopKSAE
from train.shards import ALONE, Shards
from train.sparsity import level_passed_by


class BatchTopKSAE(TopKSAE):
    """See the module's docstring."""

    name = "batchtopk"

    threshold_sum: Tensor
    threshold_weight: Tensor
    threshold_calibrated: Tensor

    def __init__(self, config: TopKConfig, d_in: int, length: RunLength, shards: Shards = ALONE) -> None:
        super().__init__(config, d_in, length, shards)
        self.register_buffer("threshold_sum", torch.tensor(0.0))
        self.register_buffer("threshold_weight", torch.tensor(0.0))
        self.register_buffer("threshold_calibrated", torch.tensor(float("nan")))
        self._decay = 1 - 1 / min(100, max(5, length.num_steps // 50))
        self._last_threshold: float = 0.0
        self._batch_threshold: Tensor | None = None

    @property
    def threshold(self) -> Tensor:
        """[width]: the one threshold of inference, for every latent."""
        average = self.threshold_sum / self.threshold_weight.clamp_min(1e-12)
        value = torch.where(self.threshold_calibrated.isnan(), average, self.threshold_calibrated)
        return value.expand(self.width)

    def encode(self, x: Tensor) -> Tensor:
        pre_acts = self.pre_acts(x)
        return pre_acts.relu() * (pre_acts > self.threshold)

    def choose(self, pre_acts: Tensor) -> Tensor:
        wanted = self.k * len(pre_acts)
        choose = self._choose_on_cpu if pre_acts.device.type == "cpu" else self._choose_on_cuda
        chosen, threshold = choose(pre_acts.detach().flatten(), wanted)
        self._batch_threshold = threshold.clamp_min(0.0)
        return chosen

    def _choose_on_cpu(self, flat: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """The ``wanted`` largest entries by an exact threshold: a tenth of the time of a flat topk.

        Candidates are what lies over nine tenths of the last threshold; if those are too few, everything positive.
        The result does not depend on where the search began, so a resumed run takes the same latents.
        """
        values = flat.numpy()
        candidates = np.flatnonzero(values > 0.9 * self._last_threshold)
        if self.shards.total(len(candidates)) < wanted:
            candidates = np.flatnonzero(values > 0.0)
        kept = values[candidates]
        every = self.shards.largest(torch.from_numpy(kept), wanted + 1).numpy()
        if len(every) > wanted:
            threshold = np.partition(every, len(every) - wanted)[len(every) - wanted]
            candidates = candidates[kept >= threshold]
        else:
            threshold = every.min() if len(every) else np.float32(0.0)
        self._last_threshold = float(threshold)
        return torch.from_numpy(candidates), torch.tensor(float(threshold))

    def _choose_on_cuda(self, flat: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """The ``wanted`` largest entries; with one process without a wait for the device."""
        chosen = largest(flat, min(wanted, len(flat)))
        values = flat[chosen]
        among = self.shards.among_largest(values[None], wanted)
        if among is None:
            return chosen, values.min().float()
        return chosen[among[0][0]], among[1][0].float()

    @torch.no_grad()
    def after_step(self, loss: Loss, batch_size: int, step: int | Tensor) -> None:
        super().after_step(loss, batch_size, step)
        assert self._batch_threshold is not None
        self.threshold_sum.mul_(self._decay).add_(self._batch_threshold, alpha=1 - self._decay)
        self.threshold_weight.mul_(self._decay).add_(1 - self._decay)

    @torch.no_grad()
    def calibrate(self, batches: list[Tensor]) -> None:
        """Set the threshold so that these training rows have a mean L0 of k with the weights as they are."""
        self.threshold_calibrated.copy_(level_passed_by(self.k, batches, self._positive, self.shards))

    def _positive(self, x: Tensor) -> Tensor:
        pre_acts = self.pre_acts(x)
        return pre_acts[pre_acts > 0]

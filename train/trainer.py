"""One SAE in training: a step, its figures, and its state for checkpoints."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from shared.errors import IdentityError
from train.architectures import SAE
from train.config import TrainConfig
from train.graphs import StepGraphs
from train.kernels.device import on_triton
from train.optimizer import Adam, default_beta2, lr_factor

_FIGURES = ("loss", "mse", "sparsity", "aux", "l0", "variance", "steps")

_DENSE = 0.1
"""Share of the tokens on which a latent is active that is called dense, as `active_on_over_10_percent` of eval.json."""


class Trainer:
    """Trains one SAE on scaled batches. No step waits for the device."""

    def __init__(self, name: str, sae: SAE, lr: float, config: TrainConfig, device: torch.device) -> None:
        self.name = name
        self.sae = sae.to(device)
        self.lr = lr
        self.config = config
        self.num_steps = sae.length.num_steps
        self.beta2 = default_beta2(self.num_steps) if config.beta2 is None else config.beta2
        self.adam = Adam(self.sae.named_parameters(), lr, (config.beta1, self.beta2), self.sae.lr_multiples(),
                         self.sae.unit_rows, divided=self.sae.per_latent, shards=self.sae.shards)
        # bf16 products with fp32 weights and moments on CUDA. Most CPUs multiply bf16 slower than fp32.
        self._autocast = device.type == "cuda" and config.precision == "bfloat16"
        self._sums = torch.zeros(len(_FIGURES), dtype=torch.float64, device=device)
        # On CUDA what changes from step to step is read from the device, so that a recorded step can be replayed.
        self._scalars = torch.zeros(2, dtype=torch.float64, device=device) if device.type == "cuda" else None
        self.sae.skips_zeros = on_triton(self._sums)  # as `_step` tells the optimiser
        # Without Triton some operations wait for the device, and the sums between processes are not ours to record.
        recorded = on_triton(self._sums) and sae.shards.size == 1
        self._graphs = StepGraphs() if recorded else None

    def step(self, x: Tensor, variance: Tensor, step: int) -> None:
        """One step on a scaled batch ``[batch, d_in]``.

        Args:
            variance: mean variance of the rows per dimension as this batch estimates it (about its own mean, with
                batch - 1 for a divisor), a scalar: all SAEs of a set share it.
            step: 0-based.
        """
        kind = self.sae.prepare(step)
        factor = self._lr_factor(step)
        if self._scalars is None:
            self._step(x, variance, step, step, factor)
            return
        self._scalars[0].fill_(step)
        self._scalars[1].fill_(factor)
        if self._graphs is None or step == 0:
            self._step(x, variance, step, self._scalars[0], self._scalars[1].float())
        else:
            self._graphs.run(self._step_on_device, x, variance, kind)

    def _step_on_device(self, x: Tensor, variance: Tensor) -> None:
        """Any step but the first, which sets what starts from the first batch."""
        assert self._scalars is not None
        self._step(x, variance, 1, self._scalars[0], self._scalars[1].float())

    def _step(self, x: Tensor, variance: Tensor, step: int, number: int | Tensor, factor: float | Tensor) -> None:
        """``number`` is the step and ``factor`` the share of the peak rate, as they are on the device."""
        with torch.autocast("cuda", dtype=torch.bfloat16) if self._autocast else nullcontext():
            loss = self.sae.loss(x, step)
        loss.total.backward()  # type: ignore[no-untyped-call]
        written = {} if loss.with_gradient is None else dict.fromkeys(("W_enc", "W_dec"), loss.with_gradient)
        self.adam.step(factor, self.config.grad_clip or None, written)
        self.sae.after_step(loss, len(x), number)
        one = torch.ones((), device=x.device)
        self._sums += torch.stack([part.detach().float() for part in
                                   (loss.total, loss.mse, loss.sparsity, loss.aux, loss.l0, variance, one)])

    def figures(self, step: int) -> dict[str, float]:
        """Means since the last call, read from the device: mse, sparsity, aux, l0, explained variance; dead and dense
        latents, the rate and the penalty's coefficient as they are."""
        sums = dict(zip(_FIGURES, self._sums.tolist(), strict=True))
        self._sums.zero_()
        steps = max(1.0, sums["steps"])
        controller = getattr(self.sae, "controller", None)
        return {
            "loss": sums["loss"] / steps,
            "mse_scaled": sums["mse"] / steps,
            "sparsity_loss": sums["sparsity"] / steps,
            "aux_loss": sums["aux"] / steps,
            "l0": sums["l0"] / steps,
            "explained_variance": 1 - sums["mse"] / max(sums["variance"], 1e-30),
            "dead_latents": self.dead_latents(),
            "dense_latents": self._dense_latents(steps * self.sae.length.batch_size),
            "lr": self.lr * self._lr_factor(step),
            **({} if controller is None else {"sparsity_coefficient": float(controller.coefficient())}),
        }

    def dead_latents(self) -> int:
        """How many latents have been silent for the reported window."""
        return int(self.sae.shards.sum((self.sae.tokens_since_fired >= self.sae.length.dead_window).sum()))

    def _dense_latents(self, tokens: float) -> int:
        """How many latents were active on over `_DENSE` of the ``tokens`` since the last call."""
        dense = self.sae.tokens_fired > _DENSE * tokens
        self.sae.tokens_fired.zero_()
        return int(self.sae.shards.sum(dense.sum()))

    def _lr_factor(self, step: int) -> float:
        config = self.config
        return lr_factor(step, self.num_steps, config.warmup_share, config.decay_share, config.schedule)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name: whole tensors, in the first of several processes."""
        return {name: self.sae.shards.whole(value, self._divided_along(name)) for name, value in self._parts().items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, with any number of processes, of which the first must have it.

        Copies in place, so parameters keep their memory layout.

        Raises:
            IdentityError: its tensors are not those of this version.
        """
        parts = self._parts()
        if self.sae.shards.is_first:
            others = parts.keys() ^ state.keys()
            others |= {name for name, value in parts.items() if name in state
                       and self.sae.shards.own(state[name], self._divided_along(name)).shape != value.shape}
            if others:
                raise IdentityError(
                    f"The checkpoint of {self.name} has or lacks {', '.join(sorted(others))}: another version of SAE "
                    "Granary wrote it. Finish the run with that version, or start over with --fresh.")
        for name, value in parts.items():
            self.sae.shards.deal(state, name, value, self._divided_along(name))

    def _parts(self) -> dict[str, Tensor]:
        """What this process has of the state."""
        return {
            **{f"sae.{name}": value for name, value in self.sae.state_dict().items()},
            **{f"adam.{name}": value for name, value in self.adam.state().items()},
            "figures": self._sums,
        }

    def _divided_along(self, name: str) -> int | None:
        """The dimension of latents of a tensor of the state, as that of the parameter whose moment it may be."""
        of_sae = name.partition(".")[2].removesuffix(".exp_avg").removesuffix(".exp_avg_sq")
        return self.sae.per_latent.get(of_sae)

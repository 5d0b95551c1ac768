"""What each means of the recipe `modern` gives: an architecture without one of them at a time, and with some it lacks.

    python -m benchmarks.quality_ablations [--architecture batchtopk] [--l0 32] [--cache caches/quality] [--steps N]

All train side by side on the same batches, one pass over the cache (or ``--steps`` batches), from the same weights.
Explained variance and L0 are on held-out rows of CONTENT, with thresholds from training rows of CONTENT, as in
`benchmarks.plain_loop`. "least-squares decoder" is no training of its own: BatchTopK's decoder is replaced at the end
by the one with the least squared error for its latents on the last 300 batches (`least_squares_decoder`).
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.content_rows import ContentRows
from benchmarks.measuring import save
from shared.reading.cache import open_cache
from train.architectures import ARCHITECTURES
from train.architectures.base import SAE, RunLength
from train.batches import Batches
from train.config import TrainConfig
from train.optimizer import default_lr
from train.statistics import measure
from train.trainer import Trainer

EXPANSION, BATCH_SIZE = 8, 1024
LAST_BATCHES = 300
"""That the decoder is fitted to."""
PRIOR = 30.0
"""As many activations of each latent hold it to where training left it."""


@dataclass(frozen=True)
class Variant:
    """How a training differs from `modern`."""

    lr: float = 1.0
    """Multiple of the rule's learning rate."""
    train: dict[str, Any] = field(default_factory=dict)
    sae: dict[str, Any] = field(default_factory=dict)
    unit_rows: bool = True
    principal_axes: bool = False
    """Inputs lie along their principal axes, each with Adam's step size of its own (one side of SOAP, arXiv 2409.11321,
    fixed)."""


BATCHTOPK = {
    "modern": Variant(),
    "a third of the learning rate": Variant(lr=1 / 3),
    "5/3 of the learning rate": Variant(lr=5 / 3),
    "decoder at the encoder's rate": Variant(sae={"decoder_lr": 1.0}),
    "biases at the encoder's rate": Variant(sae={"bias_lr": 1.0}),
    "beta2 0.999": Variant(train={"beta2": 0.999}),
    "encoder that starts as the decoder": Variant(sae={"encoder_scale": 1.0}),
    "constant learning rate": Variant(train={"warmup_share": 0.0, "decay_share": 0.0}),
    "no clipping": Variant(train={"grad_clip": None}),
    "decoder rows of any norm": Variant(unit_rows=False),
    "no AuxK": Variant(sae={"aux_coefficient": 0.0}),
    "AuxK 1/32 after a tenth of the run": Variant(sae={"aux_coefficient": 1 / 32, "dead_after_tokens": 100_000}),
    "principal axes": Variant(principal_axes=True),
}
RATES = {
    "modern": Variant(),
    "3/5 of the learning rate": Variant(lr=3 / 5),
    "5/3 of the learning rate": Variant(lr=5 / 3),
    "decoder at the encoder's rate": Variant(sae={"decoder_lr": 1.0}),
    "no clipping": Variant(train={"grad_clip": None}),
}
BETA2_999 = {
    "beta2 0.999": Variant(train={"beta2": 0.999}),
    "beta2 0.999 and decoder at the encoder's rate": Variant(train={"beta2": 0.999}, sae={"decoder_lr": 1.0}),
}
START_16 = {"start at 16 times L0": Variant(sae={"start_l0": 16.0})}
VARIANTS: dict[str, dict[str, Variant]] = {
    "batchtopk": BATCHTOPK,
    "jumprelu": {
        **RATES,
        "beta2 0.999": Variant(train={"beta2": 0.999}),
        "encoder that starts as the decoder": Variant(sae={"encoder_scale": 1.0}),
        "thresholds at 3 times the rate": Variant(sae={"threshold_lr": 3.0}),
        "biases at 4 times the rate": Variant(sae={"bias_lr": 4.0}),
        "start at 4 times L0": Variant(sae={"start_l0": 4.0}),
    },
    "standard": {**RATES, **BETA2_999, **START_16, "biases at 10 times the rate": Variant(sae={"bias_lr": 10.0})},
    "gated": {**RATES, **BETA2_999, "start at 4 times L0": Variant(sae={"start_l0": 4.0}), **START_16,
              "biases at 4 times the rate": Variant(sae={"bias_lr": 4.0})},
}


class Contender:
    """A variant in training."""

    def __init__(self, architecture: str, l0: int, variant: Variant, length: RunLength, axes: Tensor) -> None:
        d_in = len(axes)
        self.axes = axes if variant.principal_axes else torch.eye(d_in)
        self.turned = variant.principal_axes
        kind = ARCHITECTURES[architecture]
        sparsity = "k" if "k" in kind.Config.model_fields else "l0"
        config = kind.Config.model_validate({sparsity: l0, "expansion": EXPANSION, **variant.sae})
        self.sae: SAE = kind(config, d_in, length)
        if not variant.unit_rows:
            self.sae.unit_rows = ()  # type: ignore[misc]
        lr = variant.lr * default_lr(self.sae.d_sae, length.num_tokens, length.batch_size)
        self.trainer = Trainer("", self.sae, lr, TrainConfig(**variant.train), torch.device("cpu"))

    def input(self, x: Tensor) -> Tensor:
        """x ``[batch, d_in]`` as the variant sees it."""
        return x @ self.axes if self.turned else x

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[batch, d_sae]``."""
        return self.sae.encode(self.input(x))

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction ``[batch, d_in]``."""
        x_hat = self.sae.decode(latents)
        return x_hat @ self.axes.T if self.turned else x_hat


@torch.no_grad()
def least_squares_decoder(sae: SAE, batches: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """The decoder with the least squared error for the latents of ``batches`` (the method of optimal directions, Engan
    et al. 1999), held to the trained one by a ridge of `PRIOR` mean squares of each latent; b_dec as it is."""
    gram = torch.zeros(sae.d_sae, sae.d_sae)
    products = torch.zeros(sae.d_sae, sae.d_in)
    active = torch.zeros(sae.d_sae)
    for x in batches:
        latents = sae.encode(x)
        sparse = latents.T.contiguous().to_sparse_csr()
        gram += sparse @ latents
        products += sparse @ (x - sae.b_dec)
        active += (latents > 0).sum(0)
    ridge = PRIOR * (gram.diagonal() / active.clamp_min(1)).clamp_min(1e-6)
    W_dec = torch.linalg.solve((gram + ridge.diag()).double(), (products + ridge[:, None] * sae.W_dec).double()).float()
    return lambda latents: latents @ W_dec + sae.b_dec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=list(VARIANTS), default="batchtopk")
    parser.add_argument("--cache", default="caches/quality")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--steps", type=int, help="Default: one pass.")
    parser.add_argument("--l0", type=int, default=32)
    arguments = parser.parse_args()
    cache, layer = open_cache(arguments.cache), arguments.layer
    batches = Batches(cache, layer=layer, batch_size=BATCH_SIZE, num_steps=arguments.steps)
    length = RunLength(batches.num_steps, BATCH_SIZE)
    inputs = measure(cache, layer, batches.order, "mean", True)
    rows = ContentRows(cache, batches, inputs)
    sample = torch.cat(rows.calibration).double()
    axes = torch.linalg.eigh(sample.T @ sample).eigenvectors.float()
    architecture = arguments.architecture
    contenders = {name: Contender(architecture, arguments.l0, variant, length, axes)
                  for name, variant in VARIANTS[architecture].items()}

    last = []
    for step, raw in enumerate(batches):
        x = inputs.apply(raw)
        variance = (x - x.mean(0)).square().mean()
        for contender in contenders.values():
            contender.trainer.step(contender.input(x), variance, step)
        if step >= length.num_steps - LAST_BATCHES:
            last.append(x)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} of {length.num_steps}", flush=True)

    found: dict[str, dict[str, float]] = {}

    def report(name: str, contender: Contender, decode: Callable[[Tensor], Tensor]) -> None:
        found[name] = {**rows.figures(contender.encode, decode), "dead_latents": contender.trainer.dead_latents()}
        print(f"{name:38s} {found[name]['explained_variance']:.4f} at L0 {found[name]['l0']:.1f}, "
              f"{found[name]['dead_latents']} dead", flush=True)

    for name, contender in contenders.items():
        contender.sae.calibrate([contender.input(x) for x in rows.calibration])
        report(name, contender, contender.decode)
    modern = contenders["modern"]
    if architecture == "batchtopk":
        report("least-squares decoder", modern, least_squares_decoder(modern.sae, last))
    save(f"quality_ablations_{architecture}_layer{layer}" + f"_l0-{arguments.l0}" * (arguments.l0 != 32), {
        "architecture": architecture, "layer": layer, "steps": length.num_steps, "d_sae": modern.sae.d_sae,
        "target_l0": arguments.l0, "variants": found})


if __name__ == "__main__":
    main()

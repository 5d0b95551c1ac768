"""What every sparse autoencoder has: parameters, an encoder, a decoder, a loss, and counts of silent tokens.

    pre_acts = x W_enc + b_enc        x [batch, d_in],  W_enc [d_in, d_sae]
    latents  = activation(pre_acts)   [batch, d_sae]
    x_hat    = latents W_dec + b_dec  W_dec [d_sae, d_in], rows of unit L2 norm

In training x is the scaled and centred activation (`train.statistics`), so ``b_dec`` starts at zero and is
not subtracted from the encoder's input: no gradient to the input is ever needed. `train.export` folds
scale and centre in, and the SAE on disk takes raw activations and has the usual ``(x - b_dec) W_enc``.

Where several processes train an SAE (`train.shards`), each has ``width`` of the d_sae latents, and everything that has
latents along a dimension is as wide as that: read ``[width]`` for ``[d_sae]``. What is summed over latents goes
through ``shards.sum``; with one process that is nothing.
"""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from shared.recipe import Table
from train.kernels.products import product
from train.shards import ALONE, Shards


class SAEConfig(Table):
    """Fields that every architecture has."""

    expansion: float = Field(default=8.0, gt=0)
    """Number of latents as a multiple of d_in; not used where d_sae is given."""
    d_sae: int | None = Field(default=None, ge=1)
    """Number of latents."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the initialisation, and of nothing else: the order of the batches is [train] data_seed."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate at its peak. By default [train] lr, or else a rule (`train.optimizer.default_lr`)."""
    decoder_lr: float | None = Field(default=None, gt=0)
    """W_dec learns at this multiple of the learning rate. By default 3, which explains more than 1 (docs/quality.md);
    in batches of 128 too (`benchmarks.learning_rate`)."""
    bias_lr: float = Field(default=4.0, gt=0)
    """b_enc learns at this multiple of the learning rate: in a step an input of norm sqrt(d_in) moves a pre-activation
    much further by its weights than by its bias. 4 explains more than 1 in most cases, and never less by more than
    0.001 (docs/quality.md); for Gated the default is 1, for JumpReLU 10."""
    init: Literal["tied", "kaiming"] = "tied"
    """How W_dec and W_enc start. "tied": rows of W_dec in random directions, W_enc its transpose. "kaiming":
    Kaiming-uniform and independent of each other (SAELens 5, FAST). Rows of W_dec have unit norm in both."""
    encoder_scale: float | None = Field(default=None, gt=0)
    """W_enc starts as ``init`` says, times this. By default 1, but for TopK kinds and JumpReLU that start "tied" the
    factor with which the first batch is reconstructed with the least squared error (docs/quality.md). Standard and
    Gated shrink what they pass by their biases, and do not overshoot."""
    frozen_decoder: bool = False
    """Leave W_dec as it is drawn and train the rest: the baseline of Korznikov et al. (arXiv 2602.14111)."""

    def width(self, d_in: int) -> int:
        """d_sae for inputs of width ``d_in``."""
        return self.d_sae if self.d_sae is not None else max(1, round(self.expansion * d_in))

    def asked_l0(self) -> float | None:
        """Mean number of active latents that it is to come to, or None where it comes to what it comes to."""
        raise NotImplementedError

    def sparsity_name(self) -> str:
        """The sparsity as it stands in an SAE's name: "k32", "l0-32"."""
        raise NotImplementedError


@dataclass(frozen=True)
class RunLength:
    """How long an SAE will be trained, which schedules depend on."""

    num_steps: int
    batch_size: int

    @property
    def num_tokens(self) -> int:
        """Tokens seen in the whole run."""
        return self.num_steps * self.batch_size

    @property
    def dead_window(self) -> int:
        """Tokens without firing after which a latent is reported dead (design 6.7)."""
        return max(1, min(1_000_000, self.num_tokens // 10))


@dataclass(frozen=True)
class Loss:
    """The parts of one step's loss, as scalars on the device; ``total`` is what is differentiated.

    Squared errors are summed over d_in and averaged over the batch in ``total``, and averaged over d_in too
    in ``mse``, which with scaled inputs is close to the unexplained share of the variance.
    """

    total: Tensor
    mse: Tensor
    sparsity: Tensor
    """The sparsity penalty as it enters ``total`` (0 for TopK kinds)."""
    aux: Tensor
    """The auxiliary term as it enters ``total``."""
    l0: Tensor
    """Mean number of active latents in a row."""
    counts: Tensor
    """Integers [width]: in how many rows each of this process's latents was active."""
    with_gradient: Tensor | None = None
    """bool [width]: the latents whose rows of W_enc's and W_dec's gradients are written (`SAE.skips_zeros`), or None
    for all."""


class SAE(nn.Module, ABC):
    """Base of the architectures. A subclass sets ``Config``, `encode` and `loss`."""

    Config: ClassVar[type[SAEConfig]]
    name: ClassVar[str]
    unit_rows: ClassVar[tuple[str, ...]] = ("W_dec",)
    """Parameters whose rows the optimiser keeps at unit norm (`train.optimizer.Adam`)."""
    per_latent: ClassVar[dict[str, int]] = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "tokens_since_fired": 0,
                                            "tokens_fired": 0}
    """Parameters and buffers that are divided between processes, and their dimension of latents."""

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    tokens_since_fired: Tensor
    tokens_fired: Tensor
    """int64 [width]: since `Trainer.figures` was last read."""

    def __init__(self, config: SAEConfig, d_in: int, length: RunLength, shards: Shards = ALONE) -> None:
        super().__init__()
        self.config = config
        self.length = length
        self.shards = shards
        self.d_in = d_in
        self.d_sae = config.width(d_in)
        self.width = self.d_sae // shards.size
        decoder, encoder, self.drawn_norms = initial_weights(config, d_in, self.d_sae, shards)
        # The encoder is stored latent by latent, as the decoder is: its sparse gradient, its GEMM and the
        # optimiser's state then all walk along rows of d_in.
        self.W_enc = nn.Parameter(encoder.t())
        self.b_enc = nn.Parameter(torch.zeros(self.width))
        self.W_dec = nn.Parameter(decoder, requires_grad=not config.frozen_decoder)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("tokens_since_fired", torch.zeros(self.width, dtype=torch.int64))
        self.register_buffer("tokens_fired", torch.zeros(self.width, dtype=torch.int64))
        self.given: frozenset[str] = frozenset()
        """Parameters that came from another SAE (`start_from`): the first batch does not set them."""
        self.skips_zeros = False
        """Whether a gradient's rows of zeros may be left unwritten, on CUDA: for who heeds `Loss.with_gradient`."""

    @torch.no_grad()
    def start_from(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights, by the parameters' names, in place of those drawn; others stay as they are."""
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.copy_(self.shards.own(weights[name], self.per_latent.get(name)))
        self.given = frozenset(weights)

    @torch.no_grad()
    def encoder_factor(self, x: Tensor, latents: Tensor) -> Tensor | float:
        """Factor of W_enc with which ``latents`` [batch, width] of the first batch reconstruct it with the least
        squared error (a scalar); 1 where W_enc or its scale is given, or not tied to W_dec.

        Each active latent takes all of x along its direction, and random directions are not orthogonal: with a tied
        encoder they overshoot together, with 32 of 4,608 by 2, with 256 by more than 3.
        """
        if self.config.encoder_scale is not None or self.config.init != "tied" or "W_enc" in self.given:
            return 1.0
        part = self.decode(latents).float() - self.b_dec
        factor = ((x - self.b_dec) * part).sum() / part.square().sum().clamp_min(1e-30)
        return torch.where(factor > 0, factor, 1.0)

    @torch.no_grad()
    def assemble(self) -> None:
        """Become the whole SAE, on the CPU, in the first of several processes. In the others it is of no use then."""
        if self.shards.size > 1:
            self.cpu()
            for name, dim in self.per_latent.items():
                part = getattr(self, name)
                part.data = self.shards.whole(part, dim)
            self.shards, self.width = ALONE, self.d_sae

    def pre_acts(self, x: Tensor) -> Tensor:
        """Encoder output before the activation function: ``[batch, d_in] -> [batch, width]``."""
        return product(x, self.W_enc, self.b_enc)

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[batch, width]`` of x ``[batch, d_in]``, each row independent of the others."""

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction ``[batch, d_in]`` of latents ``[batch, width]``."""
        return self.shards.sum(product(latents, self.W_dec, self.shards.once(self.b_dec)))

    def forward(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``, as it is used after training."""
        return self.decode(self.encode(x))

    def prepare(self, step: int) -> int:
        """What is decided on the host before a step (0-based), which may wait for the device.

        Returns:
            Steps with the same number do the same operations on tensors of the same sizes, but for the first.
        """
        return 0

    @abstractmethod
    def loss(self, x: Tensor, step: int) -> Loss:
        """The training loss of a batch ``[batch, d_in]`` at a step (0-based). Nothing waits for the device."""

    @torch.no_grad()
    def after_step(self, loss: Loss, batch_size: int, step: int | Tensor) -> None:
        """Book-keeping after the optimiser's step, which keeps `unit_rows`: each latent's silent and active tokens.

        Args:
            step: 0-based; on CUDA also as a scalar on the device.
        """
        self.tokens_since_fired.add_(batch_size)
        self.tokens_since_fired.masked_fill_(loss.counts > 0, 0)
        self.tokens_fired.add_(loss.counts)

    def lr_multiples(self) -> dict[str, float]:
        """Parameters that learn at another rate than the rest, as multiples of it."""
        return {"W_dec": self.config.decoder_lr or 3.0, "b_enc": self.config.bias_lr}

    def calibrate(self, batches: list[Tensor]) -> None:
        """Set what is estimated with the final weights, from batches of training rows ``[batch, d_in]``."""

    def reconstruction_error(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Squared error summed over d_in, averaged over the batch (a scalar)."""
        error = x - x_hat
        return error.square().sum() / len(x)


_DRAWN_ROWS = 4096
"""Rows that are drawn at a time, and dropped where another process has them: the whole need not fit in memory."""


def initial_weights(config: SAEConfig, d_in: int, d_sae: int, shards: Shards = ALONE) -> tuple[Tensor, Tensor, Tensor]:
    """Decoder and transposed encoder, both ``[width, d_in]``: a function of the seed alone, on any device and however
    many processes divide them.

    The third, ``[width]``, is the norms that the decoder's rows were drawn with, before they were scaled to 1.
    "kaiming" is He et al. 2015 as torch has it: uniform within sqrt(6 / fan-in), where the fan-in of a matrix is
    its second dimension: d_in for W_dec [d_sae, d_in], d_sae for W_enc [d_in, d_sae].
    """
    generator = torch.Generator().manual_seed(config.seed)
    first = shards.rank * d_sae // shards.size
    own = range(first, first + d_sae // shards.size)

    def drawn(fill: Callable[[Tensor], Tensor]) -> Tensor:
        # Normal numbers come in sixteens: whole ones in every block, so that they are those of one matrix.
        starts = [*range(0, max(1, d_sae - _DRAWN_ROWS + 1), _DRAWN_ROWS), d_sae]
        blocks = (fill(torch.empty(stop - start, d_in))[max(0, own.start - start) : max(0, own.stop - start)]
                  for start, stop in itertools.pairwise(starts))
        return torch.cat([block.clone() for block in blocks])

    def uniform(fan_in: int) -> Tensor:
        bound = math.sqrt(6.0 / fan_in)
        return drawn(lambda block: block.uniform_(-bound, bound, generator=generator))

    tied = config.init == "tied"
    decoder = drawn(lambda block: block.normal_(generator=generator)) if tied else uniform(d_in)
    norms: Tensor = torch.linalg.vector_norm(decoder, dim=1)
    decoder = decoder / norms[:, None]
    encoder = decoder if tied else uniform(d_sae)
    return decoder, encoder * (config.encoder_scale or 1.0), norms

"""What the paper's SAEs would cost, estimated from a model of a GPU that is stated here. Nothing of it is measured.

A GPU does `flops` floating-point operations a second at best in bfloat16 and `flops_float32` in float32, moves
`bandwidth` bytes a second to and from its memory, and reaches the share `utilisation` of each. Then

    harvest   FLOPs   = tokens * layers run * (2 * weights of a layer + 2 * sequence * d_attention)
              seconds = FLOPs / (utilisation * flops)
    training  FLOPs   = tokens * 10 * d_in * d_sae                     for each SAE
              bytes   = steps * 56 * d_in * d_sae
              seconds = FLOPs / (utilisation * flops_float32) + bytes / (utilisation * bandwidth)

Layers run are those up to the deepest wanted one. A token's attention is two products over the half of the sequence
that it sees on average, 4 * d_attention each; where sequences are conversations their length is not known before a
plan is made, and blocks' 2,048 stands for it (at 8 B parameters a twentieth of the FLOPs). A training step multiplies
the batch with W_enc and W_dec, and both gradients of weights and the one of latents: five products of
2 * batch * d_in * d_sae; that few latents are active is not made use of, though steps on a CPU do. The optimiser reads
weight, gradient and two moments and writes all but the gradient, 28 bytes for each of 2 * d_in * d_sae parameters:
at the paper's batch of 128 rows about as long as the products.

Not in it: planning and deduplication, which take CPUs; waiting for disks; evaluation, which reads the held-out rows
twice for all SAEs of a layer; and the launching of kernels, which takes longer than they run where SAE and batch are
small.
"""

from dataclasses import dataclass

from harvest.job import shards_per_unit
from pipelines.paper.models import SIZES
from pipelines.paper.sae_set import PaperCache
from shared.format.layout import BLOCK_ROWS, Geometry

_CUDA_BATCH_TOKENS = 32_768
"""`harvest run`'s on a GPU, which decides how many shards are a unit."""


@dataclass(frozen=True)
class Gpu:
    """The stated model of a GPU. By default the data sheet's dense peaks of an H100 SXM, and a guess of what is
    reached of them."""

    tflops: float = 989.0
    """10^12 operations a second in bfloat16."""
    tflops_float32: float = 67.0
    """The same in float32, in which the paper trains."""
    terabytes: float = 3.35
    """10^12 bytes a second of its memory."""
    utilisation: float = 0.4

    def harvest_seconds(self, flops: float) -> float:
        """Seconds of a forward pass."""
        return flops / (self.utilisation * self.tflops * 1e12)

    def training_seconds(self, flops: float, moved: float) -> float:
        """Seconds of steps."""
        return flops / (self.utilisation * self.tflops_float32 * 1e12) + moved / (self.utilisation
                                                                                  * self.terabytes * 1e12)


@dataclass(frozen=True)
class SaeCost:
    """What the training of one SAE takes."""

    layer: int
    name: str
    flops: float
    moved: float
    """Bytes to and from the GPU's memory."""


@dataclass(frozen=True)
class Cost:
    """What one cache and its SAEs take."""

    num_tokens: int
    """Training rows harvested. Held-out conversations, 5,000 at most, come on top."""
    cache_bytes: int
    """Of all layers, on disk."""
    harvest_flops: float
    steps: int
    """Of each SAE."""
    tokens_seen: int
    """By each SAE."""
    bytes_read: int
    """To train: once a layer, for all of its SAEs."""
    of_saes: tuple[SaeCost, ...]

    @property
    def training_flops(self) -> float:
        """Of all SAEs."""
        return sum(sae.flops for sae in self.of_saes)

    def training_seconds(self, gpu: Gpu) -> float:
        """Of all SAEs, one after the other."""
        return sum(gpu.training_seconds(sae.flops, sae.moved) for sae in self.of_saes)


def cost_of(cache: PaperCache) -> Cost:
    """The cost of one cache and its SAEs."""
    sizes, harvest, train = SIZES[cache.model], cache.harvest, cache.train
    wanted = harvest.num_tokens or 0
    geometry = Geometry(wanted, wanted, sizes.d_model, harvest.rows_per_shard,
                        shards_per_unit(harvest.rows_per_shard, _CUDA_BATCH_TOKENS, wanted))
    steps = (train.num_tokens or 0) // train.batch_size
    seen = steps * train.batch_size
    per_token = (max(cache.layers) + 1) * (2 * sizes.layer_weights + 2 * harvest.block_length * sizes.d_attention)
    return Cost(
        num_tokens=geometry.num_rows,
        cache_bytes=sum(geometry.unit_bytes(unit, len(cache.layers)) for unit in range(geometry.num_units)),
        harvest_flops=float(geometry.num_rows * per_token),
        steps=steps,
        tokens_seen=seen,
        bytes_read=len(cache.layers) * -(-seen // BLOCK_ROWS) * geometry.block_stride,
        of_saes=tuple(SaeCost(layer, sae.name, 10.0 * seen * size, 56.0 * steps * size)
                      for layer, saes in cache.saes.items() for sae in saes
                      for size in [sizes.d_model * sae.config.width(sizes.d_model)]),
    )

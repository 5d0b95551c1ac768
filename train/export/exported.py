"""An SAE as it is used after training, in one convention whatever layout it lies on disk in; it takes raw activations.

    pre_acts = (x - b_dec) W_enc + b_enc        x [batch, d_in],  W_enc [d_in, d_sae]
    latents  = activation(pre_acts)             by architecture
    x_hat    = latents W_dec + b_dec            W_dec [d_sae, d_in]

A layout whose encoder does not subtract b_dec is brought to this one: x W + b = (x - b_dec) W + (b + b_dec W).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.bounded_json import parse_json
from shared.digests import file_digest
from shared.errors import CorruptError, StorageError
from train.architectures.sparse import decode_active

RUN = "run.json"
"""Beside an SAE of ours: what made it, and the digests of its files. Written last."""

_MAX_BYTES = 8 << 20

AGAIN = "Save or download the SAE again; one of ours is trained anew with --fresh."
"""What to do about damaged files of an SAE."""


@dataclass(frozen=True)
class MadeFor:
    """What an SAE's config says of where its activations came from; None where it does not say."""

    model: str | None
    layer: int | None
    """0-based: the decoder layer whose output it is."""
    hook: str | None
    """The place in the layer, as the config spells it: "blocks.9.hook_resid_post", "resid_post_layer_9"."""


@dataclass(frozen=True)
class ExportedSAE:
    """An SAE as it lies on disk. ``architecture`` is SAELens's: "standard", "gated", "jumprelu" or "topk"."""

    architecture: str
    W_enc: Tensor
    b_enc: Tensor
    """Of a gated SAE the gate's, b_gate."""
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None
    magnitude: tuple[Tensor, Tensor] | None
    """r_mag and b_mag of a gated SAE."""
    k: int | None
    config: dict[str, Any]
    """The whole cfg.json or config.json."""
    layout: str
    """"saelens", "dictionary_learning" or "sparsify"."""
    made_for: MadeFor

    @property
    def d_in(self) -> int:
        """Width of the activations it takes."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def encode(self, x: Tensor) -> Tensor:
        """Latents ``[batch, d_sae]`` of raw activations ``[batch, d_in]``, computed in float32."""
        pre_acts = torch.addmm(self.b_enc, x.float() - self.b_dec, self.W_enc)
        if self.magnitude is not None:
            r_mag, b_mag = self.magnitude
            return torch.addcmul(b_mag, pre_acts - self.b_enc, r_mag.exp()).relu() * (pre_acts > 0)
        if self.threshold is not None:
            return pre_acts.relu() * (pre_acts > self.threshold)
        if self.k is not None:
            values, latents = torch.topk(pre_acts, self.k, dim=1, sorted=False)
            return torch.zeros_like(pre_acts).scatter_(1, latents, values.relu_())
        return pre_acts.relu_()

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstruction ``[batch, d_in]`` of latents ``[batch, d_sae]``."""
        return decode_active(latents, self.W_dec) + self.b_dec

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def with_unit_rows(self) -> "ExportedSAE":
        """The same with rows of W_dec of unit norm (but for those of zeros): latents become as many times as large as
        their rows were long, and reconstructions stay. A TopK, which goes by the size of latents, may choose others."""
        norms = self.W_dec.norm(dim=1)
        if torch.allclose(norms, torch.ones_like(norms)):
            return self
        norms = torch.where(norms > 0, norms, 1.0)
        magnitude = None if self.magnitude is None else (self.magnitude[0], self.magnitude[1] * norms)
        return replace(self, W_enc=self.W_enc * norms, b_enc=self.b_enc * norms, W_dec=self.W_dec / norms[:, None],
                       threshold=None if self.threshold is None else self.threshold * norms, magnitude=magnitude)


def bias_after_subtraction(b_enc: Tensor, b_dec: Tensor, W_enc: Tensor) -> Tensor:
    """b_enc + b_dec W_enc, summed in float64: the bias of an encoder that subtracts b_dec and does what one that does
    not did. With ``-b_dec`` it is the way back."""
    return (b_enc.double() + b_dec.double() @ W_enc.double()).float()


def read_config(path: Path) -> dict[str, Any]:
    """An SAE's config, which anybody may have written: a JSON object of at most 8 MiB.

    Raises:
        StorageError: it cannot be read. CorruptError: it is no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CorruptError(f"{path} is larger than {_MAX_BYTES >> 20} MiB: it is no SAE's config. {AGAIN}")
        config = parse_json(path.read_bytes(), max_values=500_000, max_containers=100_000, max_nesting=50)
    except OSError as error:
        raise StorageError(f"No SAE in {path.parent}: cannot read {path.name} ({error.strerror}).") from error
    except ValueError as error:
        raise CorruptError(f"{path} is no JSON: {error}. {AGAIN}") from error
    if not isinstance(config, dict):
        raise CorruptError(f"{path} is no JSON object: it is no SAE's config. {AGAIN}")
    return config


def check_files(folder: Path, run: dict[str, Any]) -> None:
    """Compare an SAE's files with the digests that its run.json has of them.

    Raises:
        CorruptError: one differs. StorageError: one is not there.
    """
    for name, digest in run["files"].items():
        if not (folder / name).exists():
            raise StorageError(f"{folder / name} is missing. Train it again: --fresh")
        if file_digest(folder / name) != digest:
            raise CorruptError(f"{folder / name} is damaged: its xxh3 is not the one in run.json. Train it again: "
                               "--fresh")


def whole_number(value: object) -> int | None:
    """A JSON value, if it is a whole number from 0."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def check_shapes(path: Path, config: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the tensors of a weights file with those that its config asks for.

    Raises:
        CorruptError: one is missing, is there besides, or has another shape.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != dict(shapes):
        differ = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        lines = [f"{name} is {_shape(found.get(name))}, expected {_shape(shapes.get(name))}" for name in differ[:4]]
        raise CorruptError(f"{path} does not fit {config}: {'; '.join(lines)}. {AGAIN}")


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))

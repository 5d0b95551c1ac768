"""Open an SAE of ours again, for evaluation and use: it takes raw activations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import CorruptError, StorageError
from train.export.saelens import CONFIG, SAE_WEIGHTS
from train.tensor_files import read_tensors


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
    """The whole cfg.json."""

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
        return torch.addmm(self.b_dec, latents, self.W_dec)

    def __call__(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def load_sae(folder: Path | str, device: str | torch.device = "cpu") -> ExportedSAE:
    """Open the SAE in ``runs/<cache>/layer<L>/<name>/``.

    Raises:
        StorageError: there is none. CorruptError: its files do not fit each other.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"No SAE in {folder}: cannot read {CONFIG} ({error.strerror}).") from error
    except ValueError as error:
        raise CorruptError(f"{folder / CONFIG} is no JSON: {error}.") from error
    tensors = read_tensors(folder / SAE_WEIGHTS, device)
    gated = config["architecture"] == "gated"
    expected = {"W_enc", "W_dec", "b_dec"} | ({"b_gate", "r_mag", "b_mag"} if gated else {"b_enc"})
    if config["architecture"] == "jumprelu":
        expected |= {"threshold"}
    if set(tensors) != expected or tensors["W_enc"].shape != (config["d_in"], config["d_sae"]):
        raise CorruptError(f"{folder / SAE_WEIGHTS} does not fit {CONFIG}: tensors {', '.join(sorted(tensors))}.")
    magnitude = (tensors["r_mag"], tensors["b_mag"]) if gated else None
    return ExportedSAE(config["architecture"], tensors["W_enc"], tensors["b_gate" if gated else "b_enc"],
                       tensors["W_dec"], tensors["b_dec"], tensors.get("threshold"), magnitude, config.get("k"), config)

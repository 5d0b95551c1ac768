"""A finished SAE as it was trained: its parameters, the scale and centre of its inputs, and its own training loss.

On disk an SAE takes raw activations (`train.export.folding`). Its loss and its gradients belong to the scaled and
centred ones: the recipe in run.json says which, the scale stands there, and the centre is measured again on the rows
that it was trained on, as it was then.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.errors import RecipeError
from shared.reading.cache import Cache
from shared.sealed_json import read_sealed
from train.architectures import ARCHITECTURES, SAE
from train.architectures.base import RunLength
from train.batches import Batches
from train.config import TrainConfig
from train.export import load_sae
from train.export.exported import RUN
from train.metrics_log import METRICS
from train.policy import TokenPolicy, training_mask
from train.sparsity import CoefficientController, FixedCoefficient
from train.statistics import InputStatistics, measure
from train.warm_start import unfold

COEFFICIENT = "sparsity_coefficient"
"""Where run.json, under "resolved", has the coefficient of the penalty at the end of training."""

_ESTIMATE_BATCHES = 8


@dataclass(frozen=True)
class TrainedSAE:
    """A finished SAE, ready for a step that would have come after its last."""

    folder: Path
    record: dict[str, Any]
    """run.json"""
    sae: SAE
    statistics: InputStatistics
    """Scale and centre of its inputs."""
    coefficient: float | None
    """Of the sparsity penalty; None where it has none."""
    coefficient_from: str | None
    """Where that comes from: "recipe", "run.json", or "metrics.jsonl", which is an estimate."""

    @property
    def name(self) -> str:
        """The name, which is the folder's."""
        return str(self.record["name"])

    @property
    def policy(self) -> TokenPolicy:
        """The token policy that it was trained with."""
        return TokenPolicy.model_validate(self.record["policy"])

    @property
    def batch_size(self) -> int:
        """Rows in a batch of its training."""
        return int(self.record["resolved"]["train"]["batch_size"])

    def gradients(self, raw: Tensor) -> dict[str, Tensor]:
        """The gradient of its training loss on raw activations ``[batch, d_in]``, by parameter; ``theta`` as
        "threshold".

        The weights stay as they are. Of rows that the optimiser keeps at unit norm the part along the row is taken
        out, as in training; nothing is clipped. What follows from how long latents were silent (AuxK, a pull on
        thresholds) is left out: a finished SAE does not know.
        """
        sae = self.sae
        sae.zero_grad(set_to_none=True)
        sae.tokens_since_fired.zero_()
        loss = sae.loss(self.statistics.apply(raw), sae.length.num_steps)
        loss.total.backward()  # type: ignore[no-untyped-call]
        found = {}
        for name, parameter in sae.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if name in sae.unit_rows:
                rows = parameter.detach()
                gradient = gradient - (gradient * rows).sum(1, keepdim=True) * rows
            found["threshold" if name == "theta" else name] = gradient
        sae.zero_grad(set_to_none=True)
        return found


def read_trained(folder: Path) -> dict[str, Any]:
    """run.json of a finished SAE of ours.

    Raises:
        RecipeError: there is none. CorruptError: it is damaged.
    """
    if not folder.is_dir():
        raise RecipeError(f"--sae {str(folder)!r}: there is no such folder. Expected a finished SAE of ours, such as "
                          "runs/<cache>/layer<L>/<sae name>.")
    if not (folder / RUN).is_file():
        raise RecipeError(f"{str(folder)!r} holds no finished SAE of ours (there is no {RUN}), so its training loss is "
                          "not known. Expected a folder such as runs/<cache>/layer<L>/<sae name>: --sae FOLDER")
    return read_sealed(folder / RUN)


def open_trained(folder: Path, cache_of: Callable[[dict[str, Any]], Cache], device: str = "cpu") -> TrainedSAE:
    """Open a finished SAE as it was trained.

    Args:
        cache_of: finds the cache that a run.json was trained on; asked only where something is to be measured on it.

    Raises:
        RecipeError, CorruptError: as `read_trained`. StorageError: a file is missing.
    """
    record = read_trained(folder)
    exported = load_sae(folder)
    resolved = record["resolved"]
    train = TrainConfig.model_validate(resolved["train"])
    length = RunLength(resolved["num_steps"], train.batch_size)
    table = {key: value for key, value in record["recipe"]["sae"].items() if key != "architecture"}
    architecture = ARCHITECTURES[record["architecture"]]
    sae = architecture(architecture.Config.model_validate(table), exported.d_in, length)

    centre = torch.zeros(exported.d_in)
    if train.centre_input and train.centre != "none":
        batches = _batches(cache_of(record), record, train)
        measured = measure(batches.cache, record["layer"], batches.order, train.centre, train.scale)
        assert math.isclose(measured.scale, resolved["scale"], rel_tol=1e-5), "other rows than it was trained on"
        centre = measured.centre
    statistics = InputStatistics(centre, resolved["scale"])
    sae.start_from(unfold(exported, statistics))
    coefficient, source = _set_coefficient(sae, folder, record, statistics, cache_of)
    return TrainedSAE(folder, record, sae.to(device),
                      InputStatistics(statistics.centre.to(device), statistics.scale), coefficient, source)


def _batches(cache: Cache, record: dict[str, Any], train: TrainConfig) -> Batches:
    """The batches that an SAE was trained on."""
    resolved, layer = record["resolved"], record["layer"]
    mask = training_mask(cache, layer, train.policy, record["units"], resolved["median_norm"])
    return Batches(cache, layer, train.batch_size, mask=mask, data_seed=train.data_seed,
                   num_steps=resolved["num_steps"], shuffle=train.shuffle, window_blocks=resolved["window_blocks"])


def _set_coefficient(sae: SAE, folder: Path, record: dict[str, Any], statistics: InputStatistics,
                     cache_of: Callable[[dict[str, Any]], Cache]) -> tuple[float | None, str | None]:
    """Give the penalty the coefficient that it had at the end of training; it, and where it comes from."""
    controller = getattr(sae, "controller", None)
    if isinstance(controller, FixedCoefficient):
        controller.update(torch.zeros(()), sae.length.num_steps)
        return float(controller.coefficient()), "recipe"
    if not isinstance(controller, CoefficientController):
        return None, None
    value, source = record["resolved"].get(COEFFICIENT), "run.json"
    if value is None:  # trained before run.json had it
        batches = _batches(cache_of(record), record, TrainConfig.model_validate(record["resolved"]["train"]))
        value, source = _estimate(sae, folder, batches, statistics), METRICS
    controller.log_coefficient.fill_(math.log(value))
    controller.error.zero_()
    return float(value), source


@torch.no_grad()
def _estimate(sae: SAE, folder: Path, batches: Batches, statistics: InputStatistics) -> float:
    """The coefficient from the last figures of the training: the penalty as it entered the loss then, over the penalty
    that the finished SAE has on training rows. The shift of thresholds at the end changed that: in a test of 120 steps
    the estimate is off by a third."""
    last = json.loads((folder / METRICS).read_text(encoding="utf-8").splitlines()[-1])
    batches.num_steps = min(batches.num_steps, _ESTIMATE_BATCHES)
    sae.controller.log_coefficient.zero_()  # type: ignore[union-attr, operator]
    penalties = [float(sae.loss(statistics.apply(raw), sae.length.num_steps).sparsity) for raw in batches]
    return float(last["sparsity_loss"] / (sum(penalties) / len(penalties)))

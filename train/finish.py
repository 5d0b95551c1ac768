"""The end of a training: thresholds are set from training rows, what came out is held against what was asked, and the
SAE is written."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shared.digests import file_digest
from shared.provenance import versions
from shared.reading.cache import Cache
from shared.sealed_json import write_sealed
from train.architectures import SAE
from train.determinism import order_statistics_allowed
from train.export.exported import RUN
from train.export.saelens import CONFIG, SAE_WEIGHTS, sae_metadata, write_sae
from train.statistics import InputStatistics
from train.trainer import Trainer
from train.training_set import TrainingSet

MISSED = 0.05
"""Share by which an L0 may differ from the one asked for before it is told."""

SHIFTED = 1.25
"""Factor by which the L0 that a training came to may differ from it, before thresholds are set, before it is told."""

_TRAINED_BATCHES = 8
"""Batches on which the L0 that a penalty came to is measured."""


@torch.no_grad()
def calibrate(sae: SAE, batches: Sequence[Tensor], held_out: Iterable[Tensor] | None) -> tuple[float, str | None]:
    """Set what is estimated with the final weights.

    Args:
        batches: training rows ``[batch, d_in]`` to set it from, scaled.
        held_out: others to compare them with, of which there may be none. None: ``batches`` are of some types alone,
            whose L0 says nothing about that of all rows, which a penalty follows.

    Returns:
        The mean L0 of the training rows, and what to tell of it (`missed_l0`).
    """
    trained = None
    if held_out is not None and getattr(sae, "controller", None) is not None:
        trained = float(row_l0(sae, batches[:_TRAINED_BATCHES]).double().mean())
    with order_statistics_allowed():
        sae.calibrate(list(batches))
    training = row_l0(sae, batches)
    missed = missed_l0(sae.config.asked_l0(), trained, training, row_l0(sae, held_out or []))
    return float(training.double().mean()), missed


def row_l0(sae: SAE, batches: Iterable[Tensor]) -> Tensor:
    """Active latents of each row of some batches ``[batch, d_in]`` of scaled rows: int64 ``[rows]``."""
    return torch.cat([sae.b_dec.new_zeros(0, dtype=torch.int64),
                      *(sae.shards.sum((sae.encode(x) > 0).sum(1)) for x in batches)])


def missed_l0(asked: float | None, trained: float | None, training: Tensor, held_out: Tensor) -> str | None:
    """What to tell of an SAE that ends with another L0 than asked, or came to it otherwise than by learning.

    Args:
        asked: the L0 asked for; None: any is right.
        trained: the L0 before thresholds were set, of an SAE with a penalty.
        training: active latents of each training row that they were set on, ``[rows]``.
        held_out: the same of held-out rows, of which there may be none.

    Returns:
        None where all is well.
    """
    if asked is None:
        return None
    l0 = float(training.double().mean())
    if l0 < (1 - MISSED) * asked:
        return (f"was asked for an L0 of {asked:g} and has {l0:.1f} on training rows: so few of its latents are "
                "positive there. A lower learning rate or a smaller L0 may help.")
    if trained is not None and not asked / SHIFTED <= trained <= asked * SHIFTED:
        return (f"was asked for an L0 of {asked:g} and came to {trained:.1f} by its penalty: a shift of its "
                "thresholds did the rest at the end, which explains less. More steps help, and inputs that are scaled "
                "(train.scale).")
    if len(held_out) > 1:
        apart = float(held_out.double().mean()) - l0
        by_chance = 3 * math.hypot(*(float(rows.double().std() / len(rows) ** 0.5) for rows in (training, held_out)))
        if abs(l0 + apart - asked) > MISSED * asked and abs(apart) > by_chance:
            return (f"was asked for an L0 of {asked:g} and has it on the {len(training):,} training rows that its "
                    f"thresholds were set on, but {l0 + apart:.1f} on held-out ones: what it has learnt fits those it "
                    "has seen, or those were too few. More tokens bring the two together, or more "
                    "train.calibration_batches.")
    return None


def write_trained(folder: Path, trainer: Trainer, facts: TrainingSet, cache: Cache, statistics: InputStatistics, *,
                  l0: float, dead: int, device: torch.device, num_processes: int) -> None:
    """Write a trained SAE; run.json comes last and makes it finished.

    Args:
        l0: mean of the training rows that thresholds were set on.
        dead: latents that were silent in the last tenth of the run.
        device: where it was trained; ``num_processes``: of `train.shards`.
    """
    member = next(member for member in facts.saes if member.name == trainer.name)
    policy = facts.train_config().policy.model_dump(mode="json")
    controller = getattr(trainer.sae, "controller", None)
    coefficient = {} if controller is None else {"sparsity_coefficient": float(controller.coefficient())}
    write_sae(folder, trainer.sae, statistics,
              sae_metadata(cache, facts.layer, l0=l0, num_dead=dead, policy=policy, name=trainer.name))
    write_sealed(folder / RUN, {
        "format_version": 1,
        "name": trainer.name,
        "architecture": member.architecture,
        "cache": facts.cache,
        "cache_id": facts.cache_id,
        "layer": facts.layer,
        "kind": "from_scratch" if member.warm_start is None else "warm_start",
        "warm_start": None if member.warm_start is None else
        {"folder": member.warm_start, **member.recipe["warm_start"]},
        "recipe": member.recipe,
        "resolved": {"lr": trainer.lr, "lr_multiples": trainer.sae.lr_multiples(), "beta2": trainer.beta2,
                     "num_steps": facts.num_steps, "num_tokens": facts.length.num_tokens,
                     "window_blocks": facts.window_blocks, "median_norm": facts.median_norm,
                     "scale": statistics.scale, **coefficient, "train": facts.train},
        "units": facts.units,
        "num_rows": facts.num_rows,
        "policy": policy,
        "l0_train": l0,
        "dead_train": dead,
        "dead_train_window_tokens": facts.length.dead_window,
        "device": str(device),
        "threads": facts.threads,
        "tensor_parallel": num_processes,
        "deterministic": facts.deterministic,
        "versions": versions(),
        "versions_at_start": facts.versions,
        "files": {file: file_digest(folder / file) for file in (CONFIG, SAE_WEIGHTS)},
    })

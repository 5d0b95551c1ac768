"""The loop: several SAEs share every batch of one layer. Killed at any time, the same command goes on."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from shared.digests import file_digest
from shared.errors import RecipeError
from shared.progress import Progress
from shared.provenance import versions
from shared.reading.cache import Cache
from shared.sealed_json import write_sealed
from shared.terminal import StopSignal
from train import checkpoint
from train.architectures import ARCHITECTURES
from train.batches import Batches, StallShare
from train.config import SAEPlan, TrainConfig
from train.export.saelens import CONFIG, SAE_WEIGHTS, sae_metadata, write_sae
from train.metrics_log import MetricsLog
from train.policy import only_types, training_mask
from train.shuffle_quality import measure_shuffle
from train.statistics import InputStatistics, measure
from train.trainer import Trainer
from train.training_set import (
    CHECKPOINTS,
    RUN,
    TrainingSet,
    begin_set,
    find_set,
    layer_folder,
    locked,
    remove_finished_sets,
    unfinished,
)

_log = logging.getLogger(__name__)


def train_saes(cache: Cache, layer: int, train: TrainConfig, saes: Sequence[SAEPlan], *, runs: Path,
               device: str, say: Callable[[str], None]) -> list[Path]:
    """Train what is not finished of ``saes`` and give the folders of all of them.

    Args:
        runs: folder of all runs.
        device: "cpu" or "cuda".
        say: takes lines for the user.

    Raises:
        SystemExit: after SIGTERM (143) or SIGINT (130), with a checkpoint written.
        IdentityError: a folder belongs to another recipe or cache.
    """
    folder = layer_folder(runs, cache, layer)
    with locked(folder / CHECKPOINTS):
        left = unfinished(folder, cache, saes)
        for sae in saes:
            if sae not in left:
                say(f"{sae.name} is trained already; --fresh trains it again.")
        if left:
            _train_set(cache, layer, train, left, folder, device, say)
        remove_finished_sets(folder)
    return [folder / sae.name for sae in saes]


def _train_set(cache: Cache, layer: int, train: TrainConfig, left: Sequence[SAEPlan], folder: Path, device: str,
               say: Callable[[str], None]) -> None:
    found = find_set(folder, cache, left)
    threads = torch.get_num_threads()
    if found is None:
        found = begin_set(folder, cache, layer, train, left, device, threads)
    elif (found.device, found.threads) != (device, threads):
        _log.warning("This set was begun on %s with %d threads; on %s with %d its weights may differ in the last "
                     "bits.", found.device, found.threads, device, threads)
    run = SetRun(cache, found, train, folder, torch.device(device), say)
    run.train()
    run.finish()


class SetRun:
    """One set in training."""

    def __init__(self, cache: Cache, facts: TrainingSet, operational: TrainConfig, folder: Path,
                 device: torch.device, say: Callable[[str], None]) -> None:
        self.cache = cache
        self.facts = facts
        self.folder = folder
        self.set_folder = folder / CHECKPOINTS / facts.set_name
        self.device = device
        self.say = say
        self.train_config = facts.train_config()
        self.operational = operational  # cadences may change between two starts of the same run
        mask = training_mask(cache, facts.layer, self.train_config.policy, facts.units, facts.median_norm)
        self.batches = Batches(cache, facts.layer, self.train_config.batch_size, mask=mask, device=device,
                               data_seed=self.train_config.data_seed, num_steps=facts.num_steps,
                               shuffle=self.train_config.shuffle, window_blocks=facts.window_blocks)
        self.statistics = measure(cache, facts.layer, self.batches.order, self.train_config.centre,
                                  self.train_config.scale)
        self.on_device = InputStatistics(self.statistics.centre.to(device), self.statistics.scale)
        # A member may have been finished meanwhile, in a set of its own.
        self.trainers = [self._trainer(number) for number, member in enumerate(facts.saes)
                         if not (folder / member.name / RUN).exists()]
        resumed = checkpoint.load_newest(self.set_folder)
        self.start = 0
        if resumed is not None:
            self.start = resumed.step
            for trainer in self.trainers:
                prefix = f"{trainer.name}/"
                trainer.load_state({name.removeprefix(prefix): tensor for name, tensor in resumed.tensors.items()
                                    if name.startswith(prefix)})
        self.logs = [MetricsLog(folder / trainer.name, resumed.metrics_bytes[trainer.name] if resumed else 0)
                     for trainer in self.trainers]
        self._describe()

    def _trainer(self, number: int) -> Trainer:
        member = self.facts.saes[number]
        sae = ARCHITECTURES[member.architecture](member.sae_config(), self.cache.d_model, self.facts.length)
        return Trainer(member.name, sae, member.lr, self.train_config, self.device)

    def _describe(self) -> None:
        facts, config = self.facts, self.train_config
        share = sum(len(self.cache.unit_rows(unit)) for unit in facts.units) / self.cache.num_rows
        order = self.batches.order
        quality = measure_shuffle(order, config.batch_size, self.cache.conversation_offset)
        self.say(f"Layer {facts.layer} of {self.cache.path}: {len(facts.units)} of {self.cache.num_units} units "
                 f"({share:.0%} of the plan), {facts.num_rows:,} training rows kept ({config.policy.describe()}).")
        self.say(f"{facts.num_steps:,} steps of {config.batch_size:,} rows = {facts.length.num_tokens:,} tokens, "
                 f"{facts.length.num_tokens / facts.num_rows:.2f} passes.")
        self.say(f"Shuffle {config.shuffle}, {len(order.window(0, 0).held):,} rows in memory: batches have {quality}.")
        for trainer in self.trainers:
            self.say(f"  {trainer.name}  lr {trainer.lr:.2g}")
        if self.start:
            self.say(f"Going on from step {self.start:,}.")

    def train(self) -> None:
        """Run the steps that are left. A last checkpoint is there at the end."""
        config, batch_size = self.operational, self.train_config.batch_size
        saved = time.monotonic()
        self.batches.start_step = self.start
        self._stall = StallShare(self.batches)
        with StopSignal() as stop, Progress(f"train layer {self.facts.layer}", total=self.facts.length.num_tokens,
                                            unit="tokens", done=self.start * batch_size) as progress:
            for step, raw in enumerate(self.batches, start=self.start):
                x = self.on_device.apply(raw)
                variance = (x - x.mean(0)).square().mean()
                for trainer in self.trainers:
                    trainer.step(x, variance, step)
                done = step + 1
                if done % config.log_steps == 0 or done == self.facts.num_steps:
                    progress.advance(0, **self._write_metrics(step, progress.rate))
                progress.advance(batch_size)
                minutes = (time.monotonic() - saved) / 60
                if (stop.exit_code is not None or done == self.facts.num_steps
                        or (config.checkpoint_steps and done % config.checkpoint_steps == 0)
                        or (config.checkpoint_minutes and minutes >= config.checkpoint_minutes)):
                    self._save(done)
                    saved = time.monotonic()
                if stop.exit_code is not None:
                    self.say(f"Checkpoint written at step {done:,}. The same command goes on from here.")
                    raise SystemExit(stop.exit_code)

    def _write_metrics(self, step: int, rate: float) -> dict[str, float]:
        """Append a line for each SAE; the first SAE's figures are what the progress bar shows."""
        shown: dict[str, float] = {}
        stall = self._stall.since_last()
        for trainer, log in zip(self.trainers, self.logs, strict=True):
            figures = trainer.figures(step)
            if not math.isfinite(figures["loss"]):
                raise RecipeError(f"{trainer.name} diverged: its loss is not finite at step {step + 1:,}. Take a lower "
                                  f"learning rate than {trainer.lr:.2g}: --set sae.lr={trainer.lr / 3:.1g}")
            log.write({"step": step + 1, "tokens": (step + 1) * self.train_config.batch_size,
                       **figures, "tokens_per_second": rate, "stall_share": stall})
            shown = shown or {"loss": figures["loss"], "l0": figures["l0"], "ev": figures["explained_variance"],
                              "stall": stall}
        return shown

    def _save(self, step: int) -> None:
        tensors = {f"{trainer.name}/{name}": tensor for trainer in self.trainers
                   for name, tensor in trainer.state().items()}
        sizes = {trainer.name: log.durable_size() for trainer, log in zip(self.trainers, self.logs, strict=True)}
        checkpoint.save(self.set_folder, step, tensors, sizes)

    def finish(self) -> None:
        """Calibrate and write every SAE that is not written yet; run.json comes last and makes it finished."""
        calibration = [self.on_device.apply(x) for x in self._calibration_batches()]
        for trainer, log in zip(self.trainers, self.logs, strict=True):
            log.close()
            folder = self.folder / trainer.name
            if (folder / RUN).exists():
                continue
            trainer.sae.calibrate(calibration)
            self._write(trainer, calibration, folder)

    def _calibration_batches(self) -> Batches:
        config = self.train_config
        mask = only_types(self.cache, self.batches.order.mask, config.calibration_types)
        num_steps = max(1, min(config.calibration_batches, int(mask.sum()) // config.batch_size))
        return Batches(self.cache, self.facts.layer, config.batch_size, mask=mask,
                       device=self.device, data_seed=config.data_seed, num_steps=num_steps,
                       window_blocks=self.facts.window_blocks)

    @torch.no_grad()
    def _write(self, trainer: Trainer, calibration: list[torch.Tensor], folder: Path) -> None:
        facts, sae = self.facts, trainer.sae
        member = next(member for member in facts.saes if member.name == trainer.name)
        l0 = sum(int((sae.encode(x) > 0).sum()) for x in calibration) / sum(len(x) for x in calibration)
        window = facts.length.dead_window
        dead = int((sae.tokens_since_fired >= window).sum())
        policy = self.train_config.policy.model_dump(mode="json")
        write_sae(folder, sae, self.statistics,
                  sae_metadata(self.cache, facts.layer, l0=l0, num_dead=dead, policy=policy, name=trainer.name))
        write_sealed(folder / RUN, {
            "format_version": 1,
            "name": trainer.name,
            "architecture": member.architecture,
            "cache": facts.cache,
            "cache_id": facts.cache_id,
            "layer": facts.layer,
            "recipe": member.recipe,
            "resolved": {"lr": trainer.lr, "num_steps": facts.num_steps, "num_tokens": facts.length.num_tokens,
                         "window_blocks": facts.window_blocks, "median_norm": facts.median_norm,
                         "scale": self.statistics.scale, "train": facts.train},
            "units": facts.units,
            "num_rows": facts.num_rows,
            "policy": policy,
            "l0_train": l0,
            "dead_train": dead,
            "dead_train_window_tokens": window,
            "device": str(self.device),
            "threads": facts.threads,
            "versions": versions(),
            "files": {file: file_digest(folder / file) for file in (CONFIG, SAE_WEIGHTS)},
        })

"""The loop: several SAEs share every batch of one layer. Killed at any time, the same command goes on."""

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from shared.errors import RecipeError
from shared.format.identity import differences, two_columns
from shared.progress import Progress
from shared.provenance import versions
from shared.reading.cache import Cache
from shared.sealed_json import read_sealed
from shared.terminal import StopSignal
from train import checkpoint
from train.architectures import ARCHITECTURES
from train.batches import Batches, Pace
from train.config import SAEPlan, TrainConfig
from train.evaluation.held_out import held_out_figures, held_out_interval, held_out_sample
from train.export.exported import RUN
from train.finish import calibrate, write_trained
from train.locks import locked
from train.metrics_log import MetricsLog
from train.policy import only_types, training_mask
from train.shards import ALONE, Shards
from train.shuffle_quality import measure_shuffle
from train.statistics import InputStatistics, measure
from train.trainer import Trainer
from train.training_set import (
    CHECKPOINTS,
    TrainingSet,
    check_saes,
    layer_folder,
    open_sets,
    remove_finished_sets,
    unfinished,
)
from train.warm_start import start_from
from train.watchers import open_watchers
from train.watchers.base import WatchedRun

_log = logging.getLogger(__name__)


class DivergedError(RecipeError):
    """SAEs diverged, and were left behind by the others."""

    def __init__(self, messages: Sequence[str], finished: list[Path]) -> None:
        super().__init__("\n".join([*messages, *(["All others are trained."] if finished else [])]))
        self.messages = list(messages)
        """A line for each that diverged."""
        self.finished = finished
        """Folders of the others."""


def train_saes(cache: Cache, layer: int, train: TrainConfig, saes: Sequence[SAEPlan], *, runs: Path,
               device: str, say: Callable[[str], None], show_progress: bool = True,
               shards: Shards = ALONE) -> list[Path]:
    """Train what is not finished of ``saes`` and give the folders of all of them.

    Those that fit in memory are trained together, on the same batches; the others take their turn after them.

    Args:
        runs: folder of all runs.
        device: "cpu" or "cuda".
        say: takes lines for the user.
        show_progress: off for all but one of several processes at one terminal.
        shards: this process's part, where several train every SAE between them; the first of them says and writes.

    Raises:
        SystemExit: after SIGTERM (143) or SIGINT (130), with a checkpoint written.
        RecipeError: as many processes as ``train.tensor_parallel`` are not there.
        DivergedError: an SAE diverged; all others are trained and written.
        IdentityError: a folder belongs to another recipe or cache.
        TryAgainError: another process trains one of them, or one of those that train them with this one has ended.
    """
    if train.tensor_parallel != shards.size:
        raise RecipeError(f"[train].tensor_parallel is {train.tensor_parallel}, and the processes that hold an SAE "
                          f"here are {shards.size}. Divide one with python -m train run, under torchrun.")
    if not shards.is_first:
        say, show_progress = _say_nothing, False
    folder = layer_folder(runs, cache, layer)
    check_saes(saes, cache.d_model, shards.size)

    def open_all() -> list[dict[str, Any]]:
        left = unfinished(folder, cache, saes)
        for sae in saes:
            if sae not in left:
                say(f"{sae.name} is trained already{_on_how_much(cache, layer, folder / sae.name)}; --fresh trains it "
                    "again.")
        sets = open_sets(folder, cache, layer, train, left, device) if left else []
        return [found.model_dump(mode="json") for found in sets]

    with locked(folder / CHECKPOINTS, [sae.name for sae in saes]) if shards.is_first else nullcontext():
        sets = [TrainingSet.model_validate(found) for found in shards.first_says(open_all)]
        diverged: dict[str, str] = {}
        for number, found in enumerate(sets):
            if len(sets) > 1:
                count = sum(not (folder / member.name / RUN).exists() for member in found.saes)
                say(f"Turn {number + 1} of {len(sets)}: {count} SAE{'s' if count > 1 else ''}.")
            if shards.is_first:
                _warn_of_differences(found, device, shards.size)
            run = SetRun(cache, found, train, folder, torch.device(device), say, show_progress, shards)
            run.train()
            run.finish()
            diverged |= run.diverged
            del run  # and its memory: each turn is planned to fill what there is
        if shards.is_first:
            remove_finished_sets(folder, diverged)
    if diverged:
        raise DivergedError(list(diverged.values()), [folder / sae.name for sae in saes if sae.name not in diverged])
    return [folder / sae.name for sae in saes]


def _on_how_much(cache: Cache, layer: int, folder: Path) -> str:
    """", on 3 of the 5 units that the cache has now" where units came since an SAE was trained."""
    trained, now = len(read_sealed(folder / RUN)["units"]), len(cache.committed_units(layer))
    return f", on {trained} of the {now} units that the cache has now" if trained < now else ""


def _say_nothing(line: str) -> None:
    pass


def _warn_of_differences(found: TrainingSet, device: str, tensor_parallel: int) -> None:
    """Say what may change the weights of a set that was begun otherwise: most often their last bits alone."""
    then = {"device": found.device, "threads": found.threads, "deterministic": found.deterministic,
            "tensor_parallel": found.train_config().tensor_parallel, "versions": found.versions}
    now = {"device": device, "threads": torch.get_num_threads(), "tensor_parallel": tensor_parallel,
           "deterministic": torch.are_deterministic_algorithms_enabled(), "versions": versions()}
    changes = differences(then, now)
    if changes:
        lines = ["This set was begun otherwise; its weights may differ from those of a run in one piece:",
                 *two_columns(changes, "begun", "now")]
        _log.warning("\n".join(lines))


class SetRun:
    """One set in training."""

    def __init__(self, cache: Cache, facts: TrainingSet, operational: TrainConfig, folder: Path,
                 device: torch.device, say: Callable[[str], None], show_progress: bool, shards: Shards) -> None:
        self.cache = cache
        self.facts = facts
        self.folder = folder
        self.set_folder = folder / CHECKPOINTS / facts.set_name
        self.device = device
        self.shards = shards
        self.diverged: dict[str, str] = {}
        """What to tell of each SAE that was given up, by its name."""
        self.say = say
        self.show_progress = show_progress
        self.train_config = facts.train_config()
        self.operational = operational  # cadences may change between two starts of the same run
        mask = training_mask(cache, facts.layer, self.train_config.policy, facts.units, facts.median_norm)
        self.batches = Batches(cache, facts.layer, self.train_config.batch_size, mask=mask, device=device,
                               data_seed=self.train_config.data_seed, num_steps=facts.num_steps,
                               shuffle=self.train_config.shuffle, window_blocks=facts.window_blocks)
        self.statistics = measure(cache, facts.layer, self.batches.order, self.train_config.centre,
                                  self.train_config.scale, subtracted=self.train_config.centre_input)
        self.b_dec = torch.zeros_like(self.statistics.centre)
        if not self.train_config.centre_input:
            self.b_dec = self.statistics.centre * self.statistics.scale
            self.statistics = InputStatistics(torch.zeros_like(self.b_dec), self.statistics.scale)
        self.on_device = InputStatistics(self.statistics.centre.to(device), self.statistics.scale)
        resumed = checkpoint.load_newest(self.set_folder) if shards.is_first else None
        self.start = shards.first_says(lambda: resumed.step if resumed else 0)
        left, gone = shards.first_says(lambda: self._members_left(resumed))
        for number in gone:
            self._give_up(facts.saes[number].name, facts.saes[number].lr, f"before step {self.start:,}")
        self.trainers = [self._trainer(number) for number in left]
        sample = held_out_sample(cache, facts.layer, self.train_config.policy, facts.units, facts.median_norm,
                                 operational.held_out_rows)
        self.sample = None if sample is None else sample.to(device)
        if self.start:
            for trainer in self.trainers:
                prefix = f"{trainer.name}/"
                trainer.load_state({name.removeprefix(prefix): tensor for name, tensor in resumed.tensors.items()
                                    if name.startswith(prefix)} if resumed else {})
        written = self.trainers if shards.is_first else []
        self.logs = [MetricsLog(folder / trainer.name, resumed.metrics_bytes[trainer.name] if resumed else 0)
                     for trainer in written]
        self.watchers = open_watchers(operational.watch, [self._watched(trainer) for trainer in written])
        self._describe()

    def _members_left(self, resumed: checkpoint.Checkpoint | None) -> tuple[list[int], list[int]]:
        """Numbers of the members to train, and of those that the checkpoint does not hold, since they had diverged.

        A member may have been finished meanwhile, in a set of its own.
        """
        numbers = [number for number, member in enumerate(self.facts.saes)
                   if not (self.folder / member.name / RUN).exists()]
        gone = [number for number in numbers
                if resumed is not None and self.facts.saes[number].name not in resumed.metrics_bytes]
        return [number for number in numbers if number not in gone], gone

    def _trainer(self, number: int) -> Trainer:
        member = self.facts.saes[number]
        sae = ARCHITECTURES[member.architecture](member.sae_config(), self.cache.d_model, self.facts.length,
                                                 self.shards)
        sae.b_dec.data.copy_(self.b_dec)
        if member.warm_start is not None:
            start_from(sae, member.warm_start, member.recipe["warm_start"], self.statistics)
        return Trainer(member.name, sae, member.lr, self.train_config, self.device)

    def _watched(self, trainer: Trainer) -> WatchedRun:
        member = next(member for member in self.facts.saes if member.name == trainer.name)
        return WatchedRun(name=trainer.name, group=f"{self.facts.cache}/layer{self.facts.layer}",
                          folder=self.folder / trainer.name, run_id=self.facts.run_id, start_step=self.start,
                          config={**member.recipe, "lr": trainer.lr, "num_steps": self.facts.num_steps})

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
        """Run the steps that are left. A last checkpoint is there at the end, unless every SAE has diverged."""
        if not self.trainers:
            return
        self.batches.start_step = self.start
        tokens = self.train_config.batch_size
        try:
            with StopSignal() as stop, Progress(f"train layer {self.facts.layer}", self.facts.length.num_tokens,
                                                "tokens", self.start * tokens, self.show_progress) as progress:
                self._steps(stop, progress)
                [exit_code] = self.shards.most(stop.exit_code or 0)  # it may have come while the last step was saved
                if exit_code:
                    self.say("Stopped after the last step. The same command goes on from here.")
                    raise SystemExit(exit_code)
        finally:
            for watchers in self.watchers:
                watchers.close()

    def _steps(self, stop: StopSignal, progress: Progress) -> None:
        config, batch_size = self.operational, self.train_config.batch_size
        saved, pace = time.monotonic(), Pace(self.batches)
        for step, raw in enumerate(self.batches, start=self.start):
            x = self.on_device.apply(raw)
            variance = (x - x.mean(0)).square().sum() / (x.numel() - x.shape[1])
            for trainer in self.trainers:
                trainer.step(x, variance, step)
            done = step + 1
            if done % config.log_steps == 0 or done == self.facts.num_steps:
                progress.advance(0, **self._write_metrics(done, pace.since_last(done)))
                if not self.trainers:
                    return
            progress.advance(batch_size)
            minutes = (time.monotonic() - saved) / 60
            # Together: signals and clocks of several processes are not at the same step.
            exit_code, due = self.shards.most(
                stop.exit_code or 0, int(config.checkpoint_minutes > 0 and minutes >= config.checkpoint_minutes))
            if (exit_code or due or done == self.facts.num_steps
                    or (config.checkpoint_steps and done % config.checkpoint_steps == 0)):
                self._save(done)
                saved = time.monotonic()
            if exit_code:
                self.say(f"Checkpoint written at step {done:,}. The same command goes on from here.")
                raise SystemExit(exit_code)

    def _write_metrics(self, done: int, speed: dict[str, float]) -> dict[str, float]:
        """A line for each SAE after ``done`` steps; the first SAE's figures are what is shown beside the bar."""
        shown: dict[str, float] = {}
        interval = held_out_interval(self.operational, self.facts.num_steps)
        held_out = self.sample is not None and (done % interval == 0 or done == self.facts.num_steps)
        every = [trainer.figures(done - 1) for trainer in self.trainers]
        for number in reversed(range(len(every))):
            if not math.isfinite(every[number]["loss"]):
                self._drop(number, done)
                del every[number]
        for number, (trainer, figures) in enumerate(zip(self.trainers, every, strict=True)):
            if held_out:
                assert self.sample is not None
                figures |= held_out_figures(trainer.sae, self.sample, self.on_device)
            if self.shards.is_first:
                line = {"step": done, "tokens": done * self.train_config.batch_size, **figures, **speed}
                self.watchers[number].log(done, self.logs[number].write(line))
            # Without AuxK, which sets in when latents fall silent: the loss would seem to double.
            shown = shown or {"loss": figures["loss"] - figures["aux_loss"], "l0": figures["l0"],
                              "ev": figures["explained_variance"],
                              "dead": figures["dead_latents"] / trainer.sae.d_sae, "stall": speed["stall_share"]}
        return shown

    def _drop(self, number: int, done: int) -> None:
        """Go on without an SAE that diverged: the others of the set lose nothing by it."""
        trainer = self.trainers.pop(number)
        self._give_up(trainer.name, trainer.lr, f"at step {done:,}")
        if self.shards.is_first:
            self.logs.pop(number).close()
            self.watchers.pop(number).close()

    def _give_up(self, name: str, lr: float, when: str) -> None:
        self.diverged[name] = (f"{name} diverged: its loss is not finite {when}. Take a lower learning rate than "
                               f"{lr:.2g}: lr = {lr / 3:.1g} in its [[sae]] table, or --set sae.lr={lr / 3:.1g} "
                               "where it is the only one")
        if len(self.facts.saes) > 1:
            self.say(self.diverged[name])

    def _save(self, step: int) -> None:
        tensors = {f"{trainer.name}/{name}": tensor for trainer in self.trainers
                   for name, tensor in trainer.state().items()}

        def save() -> None:
            sizes = {trainer.name: log.durable_size() for trainer, log in zip(self.trainers, self.logs, strict=True)}
            checkpoint.save(self.set_folder, step, tensors, sizes)

        self.shards.first_says(save)

    def finish(self) -> None:
        """Calibrate and write every SAE that is not written yet."""
        calibration = [self.on_device.apply(x) for x in self._calibration_batches()] if self.trainers else []
        for log in self.logs:
            log.close()
        sample = [] if self.sample is None else torch.split(self.sample, self.train_config.batch_size)
        held_out = None if self.train_config.calibration_types else [self.on_device.apply(x) for x in sample]
        for trainer in self.trainers:
            l0, missed = calibrate(trainer.sae, calibration, held_out)
            if missed:
                self.say(f"Warning: {trainer.name} {missed}")
            dead = trainer.dead_latents()
            trainer.sae.assemble()
            if self.shards.is_first:
                write_trained(self.folder / trainer.name, trainer, self.facts, self.cache, self.statistics, l0=l0,
                              dead=dead, device=self.device, num_processes=self.shards.size)

    def _calibration_batches(self) -> Batches:
        config = self.train_config
        mask = only_types(self.cache, self.batches.order.mask, config.calibration_types)
        num_steps = max(1, min(config.calibration_size(), int(mask.sum()) // config.batch_size))
        return Batches(self.cache, self.facts.layer, config.batch_size, mask=mask,
                       device=self.device, data_seed=config.data_seed, num_steps=num_steps,
                       window_blocks=self.facts.window_blocks)

"""Evaluation on a cache's held-out rows: of SAEs, and of the baselines that they are compared with, by the same code.

The held-out rows are read twice for all that share a token policy: once for the mean of every subset, once for the
reconstructions. Only sums and counts are kept (`metrics`, `histograms` and `conversation_sums` beside this file).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.errors import DataError, IdentityError
from shared.progress import Progress
from shared.reading.cache import Cache
from train.evaluation.bootstrap import LEVEL, RESAMPLES, SEED
from train.evaluation.conversation_sums import BY_CELL, Cells, CellSums, conversation_table, intervals, sequence_means
from train.evaluation.files import (
    FORMAT_VERSION,
    conversation_keys,
    read_current,
    write_conversations,
    write_figures,
    write_sums,
)
from train.evaluation.foreign import read_record
from train.evaluation.histograms import QUANTILES, Histograms, density_histogram
from train.evaluation.metrics import OF_LATENTS, Bools, ErrorSums, Floats, InputSums, Ints, row_figures, subset_figures
from train.evaluation.subsets import HEADLINE, Groups, group_rows, is_paired
from train.export import ExportedSAE, load_sae
from train.export.exported import check_files
from train.policy import TokenPolicy, keeps

DEAD_ROWS = 100_000
"""Held-out rows under which "never fired" says too little to be called dead (design 6.7)."""

_CHUNK_ROWS = 2048

Reconstruct = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""From raw activations ``[n, d_in]`` and token ids ``[n]`` to reconstructions ``[n, d_in]`` and latents
``[n, d_sae]``; None where there are no latents."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated: an SAE or a baseline."""

    folder: Path
    name: str
    architecture: str
    d_sae: int
    """Number of latents, 0 where there are none."""
    reconstruct: Reconstruct
    policy: TokenPolicy
    median_norm: float
    dead_train: tuple[int, int] | None = None
    """Latents silent at the end of training, and in how many of its last tokens; None where nothing was trained."""
    baseline: dict[str, Any] | None = None
    """Of a baseline, what eval.json says of how it was made."""
    foreign: dict[str, Any] | None = None
    """Of an SAE that was made elsewhere, what eval.json says of where it came from."""


@dataclass
class _Sums:
    """What is summed of one subject."""

    errors: ErrorSums
    histograms: Histograms
    cells: CellSums
    fired: Ints
    """[d_sae]: rows of the policy on which each latent is active."""


@dataclass
class _HeldOut:
    """The held-out rows as a token policy sees them, with the sums that all subjects share."""

    cache: Cache
    layer: int
    rows: Ints
    policy: Bools
    """[rows]: which of them the policy keeps"""
    groups: Groups = field(init=False)
    group: Ints = field(init=False)
    """[rows]"""
    subsets: dict[str, Bools] = field(init=False)
    inputs: InputSums = field(init=False)
    cells: Cells = field(init=False)
    by_cell: CellSums = field(init=False)

    def __post_init__(self) -> None:
        self.groups, self.group = group_rows(self.cache, self.rows, self.policy)
        self.subsets = self.groups.subsets()
        self.inputs = InputSums.empty(len(self.groups.role), self.cache.d_model)
        self.cells = Cells.of(self.cache, self.rows)
        self.by_cell = CellSums(self.cells, len(self.subsets), ("n", "variance"))

    def chunks(self, title: str) -> Iterator[tuple[slice, Tensor]]:
        """Pieces of the rows: where they stand among them, and their activations as float32 ``[n, d_in]``."""
        activations = self.cache.layer(self.layer)
        with Progress(title, total=len(self.rows), unit="rows") as progress:
            for start in range(0, len(self.rows), _CHUNK_ROWS):
                here = slice(start, start + _CHUNK_ROWS)
                bits = activations[self.rows[here]].view(np.uint16)
                yield here, torch.from_numpy(bits).view(torch.bfloat16).float()
                progress.advance(len(bits))

    def members(self, here: slice) -> Bools:
        """Which subsets each of the rows ``here`` is in: bool [n, subsets]."""
        return np.stack([groups[self.group[here]] for groups in self.subsets.values()], axis=1)


def evaluate_saes(cache: Cache, layer: int, folders: Sequence[Path], device: str = "cpu") -> list[dict[str, Any]]:
    """Evaluate SAEs of a layer; write their files and return their eval.json.

    Gives an empty list where the cache has no held-out rows of this layer.

    Raises:
        IdentityError: an SAE is of another layer or cache. CorruptError, StorageError: as `check_files`.
        DataError: what is held out was trained on.
    """
    if len(cache.rows(layer=layer, split="held_out")) == 0:
        return []
    return evaluate(cache, layer, [sae_subject(cache, layer, folder, device) for folder in folders], device)


def sae_subject(cache: Cache, layer: int, folder: Path, device: str) -> Subject:
    """An SAE of ours, or one that was made elsewhere, its files checked; raises as `evaluate_saes`."""
    run = read_record(folder)
    check_run(cache, layer, folder, run)
    weights = Path(run.get("folder", folder))  # of one that was made elsewhere they lie there
    is_foreign = "source" in run
    if is_foreign:  # one of ours is checked where it is opened
        check_files(weights, run)
    sae = load_sae(weights, device)
    return Subject(folder, run["name"], run["architecture"], sae.d_sae, encode_and_decode(sae),
                   TokenPolicy.model_validate(run["policy"]), run["resolved"]["median_norm"],
                   None if is_foreign else (run["dead_train"], run["dead_train_window_tokens"]),
                   foreign={key: run[key] for key in ("source", "commit", "files")} if is_foreign else None)


def encode_and_decode(sae: ExportedSAE) -> Reconstruct:
    """What an SAE makes of raw activations, whatever their tokens."""
    def reconstruct(x: Tensor, token_id: Tensor) -> tuple[Tensor, Tensor]:
        latents = sae.encode(x)
        return sae.decode(latents), latents

    return reconstruct


def check_run(cache: Cache, layer: int, folder: Path, run: dict[str, Any]) -> None:
    """Refuse an SAE of another layer or cache.

    Raises:
        IdentityError: it is.
    """
    if run["cache_id"] != cache.cache_id:
        raise IdentityError(f"{folder} was trained on another cache (cache_id {run['cache_id'][:12]}) than "
                            f"{cache.path} (cache_id {cache.cache_id[:12]}), and may have seen what is held out "
                            "there. Evaluate it on its own: --cache NAME")
    if run["layer"] != layer:
        raise IdentityError(f"{folder} was trained on layer {run['layer']}, not on layer {layer}. Evaluate it on its "
                            f"own: --layer {run['layer']}")


def check_unseen(cache: Cache, rows: Ints) -> None:
    """Make sure that no held-out conversation is among the training conversations, by the hash of its content.

    Raises:
        DataError: one is.
    """
    keys = conversation_keys(cache)
    first_held_out = int(cache.conversation(np.array([cache.num_train_rows]))[0])
    held_out = np.unique(cache.conversation(rows))
    seen = held_out[np.isin(keys[held_out], keys[:first_held_out])]
    if len(seen):
        raise DataError(f"{cache.path} holds out {len(seen)} conversation{'s' if len(seen) > 1 else ''} that it trains "
                        f"on too (the first is conversation {seen[0]}): figures would be too good. Harvest it anew.")


def not_evaluated(cache: Cache, layer: int, folders: Sequence[Path]) -> list[Path]:
    """Those SAEs without an evaluation of this version on all the held-out rows that are there now."""
    num_rows = len(cache.rows(layer=layer, split="held_out"))
    return [folder for folder in folders if read_current(folder, num_rows) is None]


def evaluate(cache: Cache, layer: int, subjects: Sequence[Subject], device: str = "cpu") -> list[dict[str, Any]]:
    """Evaluate SAEs and baselines on the held-out rows of a layer, of which there must be some.

    Writes the files of `train.evaluation.files` and returns each eval.json, in the order given.

    Raises:
        DataError: what is held out was trained on.
    """
    rows = cache.rows(layer=layer, split="held_out")
    check_unseen(cache, rows)
    by_policy: dict[str, list[int]] = {}
    for number, subject in enumerate(subjects):
        policy = json.dumps([subject.policy.model_dump(mode="json"), subject.median_norm])
        by_policy.setdefault(policy, []).append(number)
    results: dict[int, dict[str, Any]] = {}
    for numbers in by_policy.values():
        first = subjects[numbers[0]]
        held_out = _HeldOut(cache, layer, rows, keeps(cache, layer, first.policy, rows, first.median_norm))
        for here, x in held_out.chunks(f"means of layer {layer}"):
            held_out.inputs.add(x.double().numpy(), held_out.group[here])
        sums = _stream(held_out, [subjects[number] for number in numbers], device)
        for number, found in zip(numbers, sums, strict=True):
            results[number] = _write(held_out, subjects[number], found)
    return [results[number] for number in range(len(subjects))]


@torch.no_grad()
def _stream(held_out: _HeldOut, subjects: Sequence[Subject], device: str) -> list[_Sums]:
    """One pass over the rows, adding to the sums of all subjects."""
    num_groups, num_subsets = len(held_out.groups.role), len(held_out.subsets)
    sums = [_Sums(ErrorSums.empty(num_groups), Histograms.empty(num_groups, subject.d_sae),
                  CellSums(held_out.cells, num_subsets, BY_CELL), np.zeros(subject.d_sae, np.int64))
            for subject in subjects]
    means = np.stack([held_out.inputs.mean(groups) for groups in held_out.subsets.values()])
    ids = held_out.cache.token_id[held_out.rows].astype(np.int64)
    for here, raw in held_out.chunks(f"evaluate layer {held_out.layer}"):
        member, group = held_out.members(here), held_out.group[here]
        ones = np.ones(len(raw))
        held_out.by_cell.add({"n": ones, "variance": _squared_distances(raw.double().numpy(), means)}, member, here)
        x, token_id = raw.to(device), torch.from_numpy(ids[here]).to(device)
        on_policy = torch.from_numpy(held_out.policy[here]).to(device)
        for subject, found in zip(subjects, sums, strict=True):
            x_hat, latents = subject.reconstruct(x, token_id)
            rows = row_figures(x, x_hat, latents)
            found.errors.add(rows, group)
            found.histograms.add(rows, group)
            found.cells.add(rows, member, here)
            if latents is not None:
                found.fired += torch.count_nonzero(latents[on_policy], dim=0).cpu().numpy()
    return sums


def _squared_distances(x: Floats, means: Floats) -> Floats:
    """|x - mean|^2 of each row ``[n, d_in]`` and each mean ``[subsets, d_in]``: [n, subsets], never below 0."""
    squares = np.einsum("ij,ij->i", x, x)[:, None] - 2 * (x @ means.T) + np.einsum("ij,ij->i", means, means)
    distances: Floats = np.maximum(squares, 0.0)
    return distances


def _write(held_out: _HeldOut, subject: Subject, sums: _Sums) -> dict[str, Any]:
    """Write the files of one subject; returns its eval.json."""
    cache, d_in = held_out.cache, held_out.cache.d_model
    conversations = held_out.cells.conversations
    table = conversation_table(held_out.by_cell, sums.cells, d_in)
    content = {
        "format_version": FORMAT_VERSION,
        "sae": subject.name,
        "architecture": subject.architecture,
        **({} if subject.baseline is None else {"baseline": subject.baseline}),
        **({} if subject.foreign is None else subject.foreign),
        "cache": cache.name,
        "cache_id": cache.cache_id,
        "layer": held_out.layer,
        "split": "held_out",
        "policy": subject.policy.model_dump(mode="json"),
        "num_rows": len(held_out.rows),
        "num_conversations": len(conversations),
        "d_in": d_in,
        "d_sae": subject.d_sae,
        "headline": HEADLINE,
        "intervals": {"level": LEVEL, "resampled": "conversations", "resamples": RESAMPLES, "seed": SEED},
        "quantiles": list(QUANTILES),
        "subsets": _subsets(held_out, subject, sums, table),
        "latents": _latents(held_out, subject, sums) if subject.d_sae else None,
    }
    names = list(held_out.subsets)
    kept = [number for number, name in enumerate(names) if is_paired(name)]
    write_sums(subject.folder, held_out.groups, held_out.inputs, sums.errors, sums.histograms, sums.fired)
    write_conversations(subject.folder, cache, conversations, table, [names[number] for number in kept], kept)
    write_figures(subject.folder, content)
    return content


def _subsets(held_out: _HeldOut, subject: Subject, sums: _Sums, table: dict[str, Floats]) -> dict[str, Any]:
    """The figures of every subset, with quantiles and intervals."""
    means, there = sequence_means(held_out.by_cell, sums.cells, held_out.cache.d_model)
    ends = intervals(table, held_out.cache.d_model, subject.d_sae > 0)
    subsets: dict[str, Any] = {}
    for number, (name, groups) in enumerate(held_out.subsets.items()):
        paper = float(means[:, number].sum() / there[:, number].sum())
        figures = subset_figures(held_out.inputs, sums.errors, groups, paper)
        quantiles: dict[str, Any] = sums.histograms.quantiles(groups)
        if not subject.d_sae:
            figures |= dict.fromkeys(OF_LATENTS)
            quantiles.pop("l0")
        # An interval stands where the figure does.
        subsets[name] = {"num_rows": figures.pop("num_rows"),
                         "num_conversations": int((table["n"][:, number] > 0).sum()), **figures,
                         "quantiles": quantiles,
                         "intervals": {key: pair for key, pair in ends[number].items() if figures[key] is not None}}
    return subsets


def _latents(held_out: _HeldOut, subject: Subject, sums: _Sums) -> dict[str, Any]:
    """How often latents are active, and how many are not at all."""
    policy_rows = int(held_out.policy.sum())
    density = sums.fired / max(1, policy_rows)
    dead, window = subject.dead_train or (None, None)
    return {
        "dead_train": dead,
        "dead_train_window_tokens": window,
        "dead_held_out": int((sums.fired == 0).sum()) if policy_rows >= DEAD_ROWS else None,
        "dead_held_out_rows": policy_rows,
        "active_on_over_1_percent": int((density > 0.01).sum()),
        "active_on_over_10_percent": int((density > 0.1).sum()),
        "density_log10_histogram": density_histogram(sums.fired, max(1, policy_rows)),
    }

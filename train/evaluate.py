"""Figures of SAEs on a cache's held-out rows: eval.json and eval_sums.safetensors beside each SAE.

The held-out rows are read once for all SAEs. Only the sums of `train.metrics` and two numbers a row are kept.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared import storage
from shared.digests import file_digest
from shared.errors import CorruptError, StorageError
from shared.progress import Progress
from shared.reading.cache import Cache
from train.export import ExportedSAE, load_sae
from train.foreign import read_record
from train.metrics import (
    ErrorSums,
    Floats,
    InputSums,
    Ints,
    density_histogram,
    mean_of_sequence_means,
    subset_figures,
)
from train.policy import TokenPolicy, keeps
from train.subsets import HEADLINE, Groups, group_rows
from train.tensor_files import write_tensors
from train.training_set import RUN

EVAL = "eval.json"
EVAL_SUMS = "eval_sums.safetensors"

DEAD_ROWS = 100_000
"""Held-out rows under which "never fired" says too little to be called dead (design 6.7)."""

_CHUNK_ROWS = 2048


@dataclass
class Candidate:
    """One SAE under evaluation, with what has been summed so far."""

    folder: Path
    sae: ExportedSAE
    run: dict[str, Any]
    errors: ErrorSums
    row_error: Floats
    """[rows]: |x - x_hat|^2 of every held-out row."""
    fired: Ints
    """[d_sae]: rows of the policy on which each latent is active."""


def evaluate_saes(cache: Cache, layer: int, folders: Sequence[Path], device: str = "cpu") -> list[dict[str, Any]]:
    """Evaluate SAEs that share a layer and a token policy; write and return their eval.json.

    Gives an empty list where the cache has no held-out rows of this layer.
    """
    rows = cache.rows(layer=layer, split="held_out")
    if len(rows) == 0:
        return []
    runs = [read_record(folder) for folder in folders]
    by_policy: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        by_policy.setdefault(json.dumps([run["policy"], run["resolved"]["median_norm"]]), []).append(number)
    results: dict[int, dict[str, Any]] = {}
    for numbers in by_policy.values():
        policy = TokenPolicy.model_validate(runs[numbers[0]]["policy"])
        kept = keeps(cache, layer, policy, rows, runs[numbers[0]]["resolved"]["median_norm"])
        groups, group = group_rows(cache, rows, kept)
        inputs = InputSums.empty(len(groups.role), cache.d_model)
        candidates = []
        for number in numbers:
            place = Path(runs[number].get("folder", folders[number]))  # a foreign one's weights lie elsewhere
            check_files(place, runs[number])
            sae = load_sae(place, device)
            candidates.append(Candidate(folders[number], sae, runs[number], ErrorSums.empty(len(groups.role)),
                                        np.zeros(len(rows)), np.zeros(sae.d_sae, np.int64)))
        _stream(cache, layer, rows, group, kept, inputs, candidates, device)
        for number, candidate in zip(numbers, candidates, strict=True):
            results[number] = _write(cache, layer, rows, groups, group, inputs, candidate, int(kept.sum()))
    return [results[number] for number in range(len(folders))]


def check_files(folder: Path, run: dict[str, Any]) -> None:
    """Compare an SAE's files with the digests that its run.json has of them.

    Raises:
        CorruptError: one differs. StorageError: one is not there.
    """
    for name, digest in run["files"].items():
        if not (folder / name).exists():
            raise StorageError(f"{folder / name} is missing. Train it again: --fresh")
        if file_digest(folder / name) != digest:
            raise CorruptError(f"{folder / name} is damaged: its xxh3 is not the one in {RUN}. Train it again: --fresh")


def not_evaluated(cache: Cache, layer: int, folders: Sequence[Path]) -> list[Path]:
    """Those SAEs whose eval.json is missing, or was made on another number of held-out rows than are there now."""
    num_rows = len(cache.rows(layer=layer, split="held_out"))
    return [folder for folder in folders if not (folder / EVAL).exists()
            or json.loads((folder / EVAL).read_text(encoding="utf-8"))["num_rows"] != num_rows]


def _stream(cache: Cache, layer: int, rows: Ints, group: Ints, kept: "np.ndarray[Any, np.dtype[np.bool_]]",
            inputs: InputSums, candidates: Sequence[Candidate], device: str) -> None:
    """One pass over the rows, adding to the sums of all candidates."""
    activations = cache.layer(layer)
    with torch.no_grad(), Progress(f"evaluate layer {layer}", total=len(rows), unit="rows") as progress:
        for start in range(0, len(rows), _CHUNK_ROWS):
            here = slice(start, start + _CHUNK_ROWS)
            raw = torch.from_numpy(activations[rows[here]].view(np.uint16)).view(torch.bfloat16)
            x = raw.to(device).float()
            inputs.add(x.double().cpu().numpy(), group[here])
            on_policy = torch.from_numpy(kept[here]).to(device)
            for candidate in candidates:
                _add(candidate, x, on_policy, here, group[here])
            progress.advance(len(x))


def _add(candidate: Candidate, x: Tensor, on_policy: Tensor, here: slice, group: Ints) -> None:
    latents = candidate.sae.encode(x)
    error = (x - candidate.sae.decode(latents)).double().square().sum(dim=1).cpu().numpy()
    active = latents > 0
    candidate.row_error[here] = error
    candidate.errors.add(error, active.sum(dim=1).cpu().numpy(), group)
    candidate.fired += active[on_policy].sum(dim=0).cpu().numpy()


def _write(cache: Cache, layer: int, rows: Ints, groups: Groups, group: Ints, inputs: InputSums,
           candidate: Candidate, policy_rows: int) -> dict[str, Any]:
    sae, run = candidate.sae, candidate.run
    sequence = cache.sequence(rows)
    subsets = {}
    for name, members in groups.subsets().items():
        inside = members[group]
        paper = mean_of_sequence_means(candidate.row_error[inside] / sae.d_in, sequence[inside])
        subsets[name] = subset_figures(inputs, candidate.errors, members, paper)
    enough = policy_rows >= DEAD_ROWS
    content = {
        "format_version": 1,
        "sae": run["name"],
        "architecture": run["architecture"],
        **{key: run[key] for key in ("source", "commit", "files") if "source" in run},  # of a foreign SAE
        "cache": cache.name,
        "cache_id": cache.cache_id,
        "layer": layer,
        "split": "held_out",
        "policy": run["policy"],
        "num_rows": len(rows),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "headline": HEADLINE,
        "subsets": subsets,
        "latents": {
            "dead_train": run["dead_train"],
            "dead_train_window_tokens": run["dead_train_window_tokens"],
            "dead_held_out": int((candidate.fired == 0).sum()) if enough else None,
            "dead_held_out_rows": policy_rows,
            "density_log10_histogram": density_histogram(candidate.fired, max(1, policy_rows)),
        },
    }
    _write_sums(candidate.folder, groups, inputs, candidate)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    storage.write_file(candidate.folder / EVAL, text.encode())
    return content


def _write_sums(folder: Path, groups: Groups, inputs: InputSums, candidate: Candidate) -> None:
    """The sums by group, one group a row: everything in eval.json but mse_paper follows from them."""
    partial = folder / f".{EVAL_SUMS}.partial"
    write_tensors(partial, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in {
        "token_class": groups.token_class,
        "role": groups.role,
        "special": groups.special,
        "policy": groups.policy,
        "n": inputs.n,
        "sum_x": inputs.sum_x,
        "sum_x2": inputs.sum_x2,
        "squared_error": candidate.errors.squared_error,
        "active": candidate.errors.active,
        "fired": candidate.fired,
    }.items()})
    storage.publish(partial, folder / EVAL_SUMS)

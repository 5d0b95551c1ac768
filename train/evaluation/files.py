"""What an evaluation leaves beside an SAE or a baseline: figures for people, sums for programs.

    eval.json                        every figure by subset, with intervals
    eval_sums.safetensors            sums and histograms by group of rows that are never split
    eval_conversations.safetensors   sums by conversation and subset, for paired comparisons

docs/metrics.md describes the three. The same evaluation again writes the same bytes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import storage
from shared.reading.cache import Cache
from train.evaluation.histograms import Histograms
from train.evaluation.metrics import ErrorSums, Floats, InputSums, Ints
from train.evaluation.subsets import Groups
from train.tensor_files import write_tensors

EVAL = "eval.json"
EVAL_SUMS = "eval_sums.safetensors"
EVAL_CONVERSATIONS = "eval_conversations.safetensors"

FORMAT_VERSION = 2
"""Of eval.json and what lies beside it; an SAE with files of another version counts as not evaluated."""

OF_CONVERSATIONS = ("n", "variance", "squared_error", "normalised_error", "cosine", "active", "sequence_means",
                    "sequences")
"""The sums by conversation that are kept, where there are such."""


def read_current(folder: Path, num_rows: int) -> dict[str, Any] | None:
    """The eval.json of a folder; None where a file is missing, of another version, or made on other held-out rows.

    One that is no JSON counts as missing: it is made again.
    """
    if not all((folder / name).exists() for name in (EVAL, EVAL_SUMS, EVAL_CONVERSATIONS)):
        return None
    try:
        content: dict[str, Any] = json.loads((folder / EVAL).read_text(encoding="utf-8"))
    except ValueError:
        return None
    current = (content["format_version"], content["num_rows"]) == (FORMAT_VERSION, num_rows)
    return content if current else None


def write_figures(folder: Path, content: Mapping[str, Any]) -> None:
    """Write eval.json, which comes last and says that the other files are there."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    # Lists of numbers on one line: a raw line break never stands inside a JSON string.
    text = re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)
    storage.write_file(folder / EVAL, text.encode())


def write_sums(folder: Path, groups: Groups, inputs: InputSums, errors: ErrorSums, histograms: Histograms,
               fired: Ints) -> None:
    """Write eval_sums.safetensors: a row a group, and ``fired`` [d_sae]."""
    _write(folder / EVAL_SUMS, {
        **{name: array for name, array in vars(groups).items()},
        "n": inputs.n,
        "sum_x": inputs.sum_x,
        "sum_x2": inputs.sum_x2,
        **errors.sums,
        **{f"histogram.{name}": counts.astype(np.int32) for name, counts in vars(histograms).items()},
        "fired": fired,
    })


def write_conversations(folder: Path, cache: Cache, conversations: Ints, table: Mapping[str, Floats],
                        subsets: Sequence[str], kept: Sequence[int]) -> None:
    """Write eval_conversations.safetensors.

    Args:
        conversations: [conversations], their numbers in the cache.
        table: `conversation_sums.conversation_table`, each [conversations, all subsets].
        subsets: names of the subsets that are written, and ``kept``, their numbers in the table.
    """
    keys = conversation_keys(cache)[conversations]
    _write(folder / EVAL_CONVERSATIONS, {
        "conversation": conversations,
        "key": keys.view(np.int64),  # as bits: torch hardly knows uint64
        **{name: table[name][:, kept] for name in OF_CONVERSATIONS if name in table},
    }, {"subsets": json.dumps(list(subsets))})  # safetensors writes several keys in an order that changes


def conversation_keys(cache: Cache) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The hash of every conversation's content, [conversations]: the same in every cache."""
    return cache.array("conversations/key").read().astype(np.uint64, copy=False)


def _write(path: Path, arrays: Mapping[str, np.ndarray[Any, np.dtype[Any]]], metadata: dict[str, str] | None = None,
           ) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write_tensors(partial, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
                  metadata)
    storage.publish(partial, path)

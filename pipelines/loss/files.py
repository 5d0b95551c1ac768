"""What the evaluation with the language model leaves beside an SAE or a baseline. docs/metrics.md describes it.

    eval_loss.json                         figures by stream and scope, with intervals
    eval_loss_conversations.safetensors    sums by conversation, stream and scope, for paired comparisons

The same evaluation again writes the same bytes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.loss.figures import SCOPES, SUMS, Table
from shared import storage
from shared.errors import CorruptError
from shared.reading.cache import Cache
from train.evaluation.files import conversation_keys
from train.evaluation.metrics import Ints
from train.evaluation.paired import ConversationSums
from train.tensor_files import read_tensors, write_tensors

EVAL_LOSS = "eval_loss.json"
EVAL_LOSS_CONVERSATIONS = "eval_loss_conversations.safetensors"

FORMAT_VERSION = 1


def read_loss(folder: Path, cache_id: str) -> dict[str, Any] | None:
    """The eval_loss.json of a folder; None where there is none of this version and cache."""
    try:
        content: dict[str, Any] = json.loads((folder / EVAL_LOSS).read_text(encoding="utf-8"))
        current = (content["format_version"], content["cache_id"]) == (FORMAT_VERSION, cache_id)
    except (OSError, ValueError, LookupError, TypeError):
        return None  # it is made again by the next evaluation
    return content if current else None


def read_loss_sums(folder: Path) -> ConversationSums:
    """The sums of eval_loss_conversations.safetensors, each stream and scope as a subset: "conversations:assistant".

    Raises:
        StorageError: the file cannot be read. CorruptError: it is damaged.
    """
    path = folder / EVAL_LOSS_CONVERSATIONS
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    parts = [name.removesuffix(".n") for name in sorted(arrays) if name.endswith(".n")]
    try:
        keys = arrays["key"].view(np.uint64)
        sums = {name: np.stack([arrays[f"{part}.{name}"] for part in parts], axis=1) for name in SUMS}
    except (KeyError, ValueError) as error:
        raise CorruptError(f"{path} is damaged: it lacks {error}. Write it again: python -m pipelines "
                           "evaluate") from None
    return ConversationSums(keys, tuple(part.replace(".", ":", 1) for part in parts), sums)


def write_loss(folder: Path, cache: Cache, content: Mapping[str, Any], conversations: Ints,
               tables: Mapping[str, Table]) -> None:
    """Write both files; eval_loss.json comes last and says that the other is there.

    Args:
        conversations: [C], their numbers in the cache.
        tables: by stream, each sum ``[C, scopes]``; 0 where a stream does not have a conversation.
    """
    arrays: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "conversation": conversations,
        "key": conversation_keys(cache)[conversations],
        **{f"{stream}.{scope}.{name}": sums[:, number]
           for stream, table in tables.items() for name, sums in table.items() for number, scope in enumerate(SCOPES)},
    }
    path = folder / EVAL_LOSS_CONVERSATIONS
    partial = path.with_name(f".{path.name}.partial")
    write_tensors(partial, {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
                  {"scopes": json.dumps(list(SCOPES))})  # safetensors writes several keys in an order that changes
    storage.publish(partial, path)
    storage.write_file(folder / EVAL_LOSS, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())

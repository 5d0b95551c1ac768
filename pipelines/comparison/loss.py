"""The language model's loss with an SAE in the layer's place, as its evaluation leaves it beside the SAE.

    eval_loss.json                         figures by stream ("conversations", "blocks") and scope ("assistant")
    eval_loss_conversations.safetensors    the sums behind them by conversation, stream and scope

In a comparison a stream and a scope are a subset: "conversations:assistant".
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import CorruptError, StorageError
from train.evaluation.metrics import Floats
from train.evaluation.paired import ConversationSums
from train.tensor_files import read_tensors

LOSS = "eval_loss.json"
LOSS_CONVERSATIONS = "eval_loss_conversations.safetensors"

_SUMS = ("n", "ce", "ce_spliced", "kl", "ce_zero", "ce_mean")
_AGAIN = "Write it again: python -m pipelines evaluate"


def has_loss(folder: Path) -> bool:
    """Whether the loss of an SAE was measured."""
    return (folder / LOSS).is_file() and (folder / LOSS_CONVERSATIONS).is_file()


def read_loss_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of eval_loss.json by subset.

    Raises:
        StorageError: the file cannot be read. CorruptError: it is damaged.
    """
    path = folder / LOSS
    try:
        streams = json.loads(path.read_text(encoding="utf-8"))["streams"]
        return {f"{stream}:{scope}": dict(figures) for stream, scopes in streams.items()
                for scope, figures in scopes.items()}
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptError(f"{path} is damaged: it is no JSON of ours ({error}). {_AGAIN}") from error


def read_loss_sums(folder: Path) -> ConversationSums:
    """The sums of eval_loss_conversations.safetensors.

    Raises:
        StorageError: the file cannot be read. CorruptError: it is damaged.
    """
    path = folder / LOSS_CONVERSATIONS
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    parts = [name.removesuffix(".n") for name in sorted(arrays) if name.endswith(".n")]
    try:
        keys = arrays["key"].view(np.uint64)
        sums = {name: np.stack([arrays[f"{part}.{name}"] for part in parts], axis=1) for name in _SUMS}
    except (KeyError, ValueError) as error:
        raise CorruptError(f"{path} is damaged: it lacks {error}. {_AGAIN}") from None
    return ConversationSums(keys, tuple(part.replace(".", ":", 1) for part in parts), sums)


def loss_figures(sums: dict[str, Floats]) -> dict[str, Floats]:
    """The figures of sums over predicted tokens, of any shape; NaN where one is not defined.

    Of an ablation that does no damage nothing can be recovered.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {"kl": sums["kl"] / sums["n"], "delta_ce": (sums["ce_spliced"] - sums["ce"]) / sums["n"]}
        for ablation in ("mean", "zero"):
            damage = sums[f"ce_{ablation}"] - sums["ce"]
            share = (sums[f"ce_{ablation}"] - sums["ce_spliced"]) / damage
            found[f"ce_recovered_{ablation}"] = np.where(damage > 0, share, np.nan)
    return found

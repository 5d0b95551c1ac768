"""The plan: which rows a cache will hold, decided on the CPU before the model runs.

Reads, validates, templates, tokenises and orders the conversations, and writes everything of the cache
but the activations. plan.json is written last and makes the plan valid.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harvest.config import HarvestConfig
from harvest.conversation import Conversation, Skipped
from harvest.mixture import Mixture
from harvest.selection import HELD_OUT_CONVERSATIONS, Chosen, Placer, Smallest
from harvest.sources import Source, check_skipped
from harvest.template import ChatTemplate, Encoded
from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import DataError
from shared.format.layout import GROUP, PLAN, PLAN_ARRAYS, SKIPPED, TMP, TOKENIZER, Geometry
from shared.format.plan import Plan, make_cache_id
from shared.format.plan_arrays import write_plan_array
from shared.format.zarr_json import group_attributes
from shared.format.zarr_metadata import plan_metadata
from shared.progress import Progress
from shared.sealed_json import write_sealed

TRUNCATED = 1
"""Bit of ``conversations/flags``: cut at max_length."""

_CHUNK = 256
_SKIPPED_KEPT = 100_000


@dataclass(frozen=True)
class Choice:
    """The conversations of a plan, chosen and in order, in memory."""

    train: list[Chosen]
    held_out: list[Chosen]
    num_read: int
    skipped: Counter[str]
    examples: list[Skipped]


def choose_conversations(
    config: HarvestConfig, source: Source | Mixture, template: ChatTemplate, plan_tokens: int | None
) -> Choice:
    """Read the source and keep the conversations of the plan.

    Raises:
        DataError: there is nothing to harvest, or too much of it is malformed.
    """
    placer = Placer(config.seed)
    train = Smallest(plan_tokens)
    held_out = Smallest(config.held_out_rows, HELD_OUT_CONVERSATIONS)
    skipped: Counter[str] = Counter()
    examples: list[Skipped] = []
    num_read = 0

    def skip(row: Skipped) -> None:
        skipped[row.reason] += 1
        if len(examples) < _SKIPPED_KEPT:
            examples.append(row)

    with Progress("plan", total=0, unit="conversations") as progress:
        for chunk in _chunks(source.read(), _CHUNK):
            num_read += len(chunk)
            wanted = []
            for row in chunk:
                if isinstance(row, Skipped):
                    skip(row)
                    continue
                place, is_held_out = placer.place(row.key)
                if (held_out if is_held_out else train).may_take(place):
                    wanted.append((row, place, is_held_out))
            for (row, place, is_held_out), encoded in zip(wanted, template.encode([w[0] for w in wanted]), strict=True):
                if isinstance(encoded, Skipped):
                    skip(encoded)
                    continue
                cut = encoded.cut(config.max_length)
                item = Chosen(place, cut, source=row.source, truncated=len(cut) < len(encoded))
                (held_out if is_held_out else train).add(item)
            progress.advance(len(chunk))
    check_skipped(num_read, skipped, examples, config.max_skipped)
    choice = Choice(train.chosen(), held_out.chosen(), num_read, skipped, examples)
    if not choice.train:
        raise DataError(f"No conversation of {source.name} is left to train on: all {num_read} are held out. "
                        "Take more conversations: DATA=more.jsonl")
    return choice


def make_plan(
    choice: Choice, source: Source | Mixture, identity: dict[str, Any], d_model: int, num_layers: int
) -> Plan:
    """The plan of chosen conversations, without the digests of its files."""
    num_train_rows = sum(len(item.encoded) for item in choice.train)
    num_rows = num_train_rows + sum(len(item.encoded) for item in choice.held_out)
    geometry = Geometry(
        num_rows, num_train_rows, d_model, identity["rows_per_shard"], identity["shards_per_unit"]
    )
    num_conversations = len(choice.train) + len(choice.held_out)
    return Plan(
        cache_id=make_cache_id(identity),
        identity=identity,
        d_model=d_model,
        num_layers=num_layers,
        num_rows=num_rows,
        num_train_rows=num_train_rows,
        num_conversations=num_conversations,
        num_train_conversations=len(choice.train),
        num_sequences=num_conversations,
        rows_per_shard=identity["rows_per_shard"],
        shards_per_unit=identity["shards_per_unit"],
        batch_tokens=identity["batch_tokens"],
        sources=source.names,
        num_read=choice.num_read,
        num_skipped=dict(choice.skipped),
        units=[(rows.start, rows.stop) for rows in map(geometry.unit_rows, range(geometry.num_units))],
        digests={},
    )


def write_plan(
    cache: Path, plan: Plan, choice: Choice, tokenizer: dict[str, bytes], writer: str
) -> Plan:
    """Write the plan's files into a cache folder, plan.json last. Repeating it writes the same bytes."""
    temporary = cache / TMP / writer
    storage.make_folder(temporary)
    arrays = _plan_arrays([*choice.train, *choice.held_out])
    metadata = plan_metadata(group_attributes(plan), {name: len(values) for name, values in arrays.items()})
    digests: dict[str, str] = {}
    for name, data in [
        *((f"{GROUP}/{key}", data) for key, data in metadata.items()),
        *((f"{TOKENIZER}/{key}", data) for key, data in tokenizer.items()),
    ]:
        storage.make_folder((cache / name).parent)
        storage.write_file(cache / name, data, temporary)
        digests[name] = hex_digest(data)
    for name, values in arrays.items():
        digests |= write_plan_array(cache, name, values, temporary)
    lines = [canonical_json(skip.__dict__).decode() for skip in choice.examples]
    storage.write_file(cache / SKIPPED, "".join(line + "\n" for line in lines).encode(), temporary)
    plan = plan.model_copy(update={"digests": digests})
    write_sealed(cache / PLAN, plan.model_dump(mode="json"), temporary)
    return plan


def _plan_arrays(chosen: list[Chosen]) -> dict[str, npt.NDArray[Any]]:
    encoded = [item.encoded for item in chosen]
    arrays: dict[str, npt.NDArray[Any]] = {
        f"tokens/{name}": np.concatenate([getattr(item, name) for item in encoded])
        for name in Encoded.__dataclass_fields__
    }
    offset = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    arrays |= {
        "conversations/offset": offset,
        "conversations/key": np.array([item.place.key for item in chosen], np.uint64),
        "conversations/flags": np.array([TRUNCATED * item.truncated for item in chosen], np.uint16),
        "conversations/source": np.array([item.source for item in chosen], np.uint16),
        "sequences/offset": offset,
    }
    assert arrays.keys() == PLAN_ARRAYS.keys()
    return arrays


def _chunks(rows: Iterator[Conversation | Skipped], size: int) -> Iterator[list[Conversation | Skipped]]:
    """itertools.batched, which Python 3.11 has not."""
    while chunk := list(islice(rows, size)):
        yield chunk

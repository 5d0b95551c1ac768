"""The plan: which rows a cache will hold, decided on the CPU before the model runs.

Reads, validates, templates, tokenises and orders the conversations, and writes everything of the cache
but the activations. plan.json is written last and makes the plan valid.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from harvest.config import HarvestConfig
from harvest.conversation import Conversation, Skipped
from harvest.model import ModelSource, save_tokenizer
from harvest.selection import HELD_OUT_CONVERSATIONS, HELD_OUT_SHARE, Chosen, Placer, Smallest
from harvest.sources import Source, check_skipped
from harvest.template import ChatTemplate, ChatTokenizer, Encoded
from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import DataError
from shared.layout import FORMAT, FORMAT_VERSION, GROUP, PLAN, PLAN_ARRAYS, SKIPPED, TMP, TOKENIZER, Geometry
from shared.plan import Plan, make_cache_id
from shared.plan_arrays import write_plan_array
from shared.progress import Progress
from shared.sealed_json import write_sealed
from shared.tokens import Role, TokenClass, TokenType, enum_name
from shared.zarr_metadata import plan_metadata

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
    config: HarvestConfig, source: Source, template: ChatTemplate, plan_tokens: int | None
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
            for (_, place, is_held_out), encoded in zip(wanted, template.encode([w[0] for w in wanted]), strict=True):
                if isinstance(encoded, Skipped):
                    skip(encoded)
                    continue
                cut = encoded.cut(config.max_length)
                item = Chosen(place, cut, source=0, truncated=len(cut) < len(encoded))
                (held_out if is_held_out else train).add(item)
            progress.advance(len(chunk))
    check_skipped(num_read, skipped, examples, config.max_skipped)
    choice = Choice(train.chosen(), held_out.chosen(), num_read, skipped, examples)
    if not choice.train:
        raise DataError(f"No conversation of {source.name} is left to train on: all {num_read} are held out.")
    return choice


def make_identity(
    config: HarvestConfig, model: ModelSource, source: Source, tokenizer: str, sizes: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides the rows of a cache, as it is hashed into the cache id."""
    return {
        "model": {"name": model.name, "revision": model.revision, "weights": model.weights_digest()},
        "tokenizer": tokenizer,
        "template_variables": config.template_variables,
        "template_date": config.template_date.isoformat(),
        "dataset": source.identity,
        "order": {"kind": "fast", "separator": None, "bos": None},
        "seed": config.seed,
        "max_length": config.max_length,
        "held_out": {
            "share": HELD_OUT_SHARE,
            "max_conversations": HELD_OUT_CONVERSATIONS,
            "max_rows": config.held_out_rows,
        },
        "control_tokens": config.control_tokens,
        **sizes,
    }


def tokenizer_files(tokenizer: ChatTokenizer) -> dict[str, bytes]:
    """The files of a saved tokenizer, template included, by name."""
    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def tokenizer_digest(files: dict[str, bytes]) -> str:
    """xxh3-128 of what decides token ids: the vocabulary and rules, and the chat template.

    tokenizer_config.json is left out: transformers writes notes of its own into it, version by version.
    """
    deciding = {name: hex_digest(data) for name, data in files.items() if name != "tokenizer_config.json"}
    return hex_digest(canonical_json(deciding))


def make_plan(choice: Choice, source: Source, identity: dict[str, Any], d_model: int, num_layers: int) -> Plan:
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
        sources=[source.name],
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
    metadata = plan_metadata(_attributes(plan), {name: len(values) for name, values in arrays.items()})
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


def _attributes(plan: Plan) -> dict[str, Any]:
    """Attributes of the Zarr group: what a foreign reader needs to read the numbers as words."""

    def names(kind: Iterable[Any]) -> dict[str, int]:
        return {enum_name(member): int(member) for member in kind}

    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "cache_id": plan.cache_id,
        "num_train_tokens": plan.num_train_rows,
        "token_class": names(TokenClass),
        "token_type_bits": names(TokenType),
        "role": names(Role),
    }


def _chunks(rows: Iterator[Conversation | Skipped], size: int) -> Iterator[list[Conversation | Skipped]]:
    """itertools.batched, which Python 3.11 has not."""
    while chunk := list(islice(rows, size)):
        yield chunk

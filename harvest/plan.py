"""The plan: which rows a cache will hold, decided on the CPU before the model runs.

Reads, validates, templates, tokenises and orders the conversations, and writes everything of the cache
but the activations. plan.json is written last and makes the plan valid. Memory is some 150 bytes a conversation;
tokens wait on the disk (`harvest.encoding`), and a plan that was killed goes on from there.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from harvest.config import HarvestConfig
from harvest.conversation import Conversation, Skipped
from harvest.deduplicate import Duplicates, find_duplicates
from harvest.encoding import BATCH, Batches, EncodedBatch, Encoder, Encoding
from harvest.mixture import Mixture
from harvest.order import TOKEN, Layout, Order, Tokens, Walk, lay_out, rows_of
from harvest.selection import CHOSEN, HELD_OUT_CONVERSATIONS, Entries, Place, Placer, Smallest, held_out_by
from harvest.sources import Source, check_skipped
from shared import storage
from shared.digests import canonical_json, hex_digest
from shared.errors import DataError
from shared.format.layout import GROUP, PLAN, PLAN_ARRAYS, SKIPPED, TMP, TOKENIZER, Geometry
from shared.format.plan import Plan, make_cache_id
from shared.format.plan_arrays import PlanArrayWriter
from shared.format.zarr_json import group_attributes
from shared.format.zarr_metadata import plan_metadata
from shared.progress import Progress
from shared.sealed_json import write_sealed

TRUNCATED = 1
"""Bit of ``conversations/flags``: cut at max_length."""

_SKIPPED_KEPT = 100_000
_SECONDS_TO_WRITE = 5_000_000
"""Tokens whose writing takes so long that its progress is shown."""


@dataclass(frozen=True)
class Choice:
    """The conversations of a plan, chosen and in order, without their tokens."""

    train: Entries
    held_out: Entries
    layout: Layout
    num_read: int
    skipped: Counter[str]
    examples: list[Skipped]


class _Chooser:
    """Keeps the conversations of the plan while the source is read."""

    def __init__(self, config: HarvestConfig, plan_tokens: int | None, duplicates: Duplicates | None) -> None:
        self.train = Smallest(plan_tokens)
        self.held_out = Smallest(config.held_out_rows, HELD_OUT_CONVERSATIONS)
        self.skipped: Counter[str] = Counter()
        self.examples: list[Skipped] = []
        self._duplicates = duplicates
        self._together = config.deduplicate is not None and config.deduplicate.action == "together"
        self._placer = Placer(config.seed)
        self._num_read = 0
        self._waiting: deque[list[tuple[Place, bool, int]]] = deque()
        """Places, sides and sources of the batches that are being encoded."""

    def skip(self, row: Skipped) -> None:
        """Count a row that is left out."""
        self.skipped[row.reason] += 1
        if len(self.examples) < _SKIPPED_KEPT:
            self.examples.append(row)

    def place(self, row: Conversation) -> tuple[Place, bool, int] | None:
        """The next conversation's place, side and source; None if it can never be among the chosen."""
        number, self._num_read = self._num_read, self._num_read + 1
        original = self._duplicates.key_of(number) if self._duplicates is not None else None
        if original is not None and not self._together:
            self.skip(Skipped(row.place, "duplicate", f"of the conversation with key {original:016x}"))
            return None
        place, is_held_out = self._placer.place(row.key)
        if original is not None and is_held_out != held_out_by(original):
            self.skip(Skipped(row.place, "other_side", f"like the conversation with key {original:016x}, which is "
                              + ("trained on" if is_held_out else "held out")))
            return None
        taken = (self.held_out if is_held_out else self.train).may_take(place)
        return (place, is_held_out, row.source) if taken else None

    def hand_over(self, places: list[tuple[Place, bool, int]]) -> None:
        """A batch goes away to be encoded."""
        self._waiting.append(places)

    def take(self, number: int, batch: EncodedBatch) -> None:
        """The oldest batch is back."""
        for skip in batch.skipped:
            self.skip(skip)
        places = self._waiting.popleft()
        entries = np.zeros(len(places), CHOSEN)
        for column, name in enumerate(("rank", "key", "occurrence")):
            entries[name] = np.array([place.sort_key[column] for place, _, _ in places], np.uint64)
        entries["source"] = [source for _, _, source in places]
        entries["batch"], entries["start"], entries["length"] = number, batch.start, batch.length
        entries["first_id"], entries["flags"] = batch.first_id, TRUNCATED * batch.truncated
        there = batch.length > 0
        is_held_out = np.array([held_out for _, held_out, _ in places])
        self.train.add(entries[there & ~is_held_out])
        self.held_out.add(entries[there & is_held_out])


def choose_conversations(
    config: HarvestConfig, source: Source | Mixture, encoder: Encoder, order: Order, plan_tokens: int | None,
    folder: Path | None, processes: int = 1,
) -> Choice:
    """Read the source and keep the conversations of the plan.

    Args:
        folder: where tokens are kept for `write_plan`, and what does not fit in memory; None: tokens are not kept.
        processes: how many encode conversations.

    Raises:
        DataError: there is nothing to harvest, or too much of it is malformed.
    """
    duplicates = find_duplicates(source.read, config.deduplicate, folder=folder) if config.deduplicate else None
    chooser = _Chooser(config, plan_tokens, duplicates)
    num_read = 0
    with (Progress("plan", total=0, unit="conversations") as progress,
          Encoding(encoder, config.max_length, Batches(folder), processes) as encoding):
        rows: list[Conversation] = []
        places: list[tuple[Place, bool, int]] = []
        for chunk in _chunks(source.read(), BATCH):
            num_read += len(chunk)
            for row in chunk:
                if isinstance(row, Skipped):
                    chooser.skip(row)
                elif place := chooser.place(row):
                    rows.append(row)
                    places.append(place)
            if len(rows) >= BATCH:
                chooser.hand_over(places)
                for number, batch in encoding.put(rows):
                    chooser.take(number, batch)
                rows, places = [], []
            progress.advance(len(chunk))
        if rows:
            chooser.hand_over(places)
            for number, batch in encoding.put(rows):
                chooser.take(number, batch)
        for number, batch in encoding.rest():
            chooser.take(number, batch)
    check_skipped(num_read, chooser.skipped, chooser.examples, config.max_skipped)
    train, held_out = chooser.train.chosen(), chooser.held_out.chosen()
    if not len(train):
        raise DataError(f"No conversation of {source.name} is left to train on: all {num_read} are held out. "
                        "Take more conversations: DATA=more.jsonl")
    layout = lay_out(order, _lengths(train), _lengths(held_out))
    return Choice(train, held_out, layout, num_read, chooser.skipped, chooser.examples)


def make_plan(
    choice: Choice, source: Source | Mixture, identity: dict[str, Any], d_model: int, num_layers: int
) -> Plan:
    """The plan of chosen conversations, without the digests of its files."""
    num_rows = int(choice.layout.conversation_offset[-1])
    geometry = Geometry(
        num_rows, choice.layout.num_train_rows, d_model, identity["rows_per_shard"], identity["shards_per_unit"]
    )
    return Plan(
        cache_id=make_cache_id(identity),
        identity=identity,
        d_model=d_model,
        num_layers=num_layers,
        num_rows=num_rows,
        num_train_rows=choice.layout.num_train_rows,
        num_conversations=len(choice.train) + len(choice.held_out),
        num_train_conversations=len(choice.train),
        num_sequences=len(choice.layout.sequence_offset) - 1,
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
    cache: Path, plan: Plan, choice: Choice, order: Order, folder: Path, tokenizer: dict[str, bytes], writer: str
) -> Plan:
    """Write the plan's files into a cache folder, plan.json last. Repeating it writes the same bytes.

    Args:
        folder: where `choose_conversations` kept the tokens.
    """
    temporary = cache / TMP / writer
    storage.make_folder(temporary)
    metadata = plan_metadata(group_attributes(plan), {name: plan.array_length(name) for name in PLAN_ARRAYS})
    digests: dict[str, str] = {}
    for name, data in [
        *((f"{GROUP}/{key}", data) for key, data in metadata.items()),
        *((f"{TOKENIZER}/{key}", data) for key, data in tokenizer.items()),
    ]:
        storage.make_folder((cache / name).parent)
        storage.write_file(cache / name, data, temporary)
        digests[name] = hex_digest(data)
    arrays = {name: PlanArrayWriter(cache, name, temporary) for name in PLAN_ARRAYS}
    is_long = plan.num_rows > _SECONDS_TO_WRITE
    with Progress("write the plan", total=plan.num_rows, unit="tokens", shown=is_long) as progress:
        for rows in _all_rows(choice, order, Batches(folder)):
            for name in TOKEN.names or ():
                arrays[f"tokens/{name}"].append(rows[name])
            progress.advance(len(rows))
    entries = np.concatenate([choice.train, choice.held_out])
    for name in ("key", "flags", "source"):
        arrays[f"conversations/{name}"].append(entries[name])
    arrays["conversations/offset"].append(choice.layout.conversation_offset)
    arrays["sequences/offset"].append(choice.layout.sequence_offset)
    for array in arrays.values():
        digests |= array.close()
    lines = [canonical_json(skip.__dict__).decode() for skip in choice.examples]
    storage.write_file(cache / SKIPPED, "".join(line + "\n" for line in lines).encode(), temporary)
    plan = plan.model_copy(update={"digests": digests})
    write_sealed(cache / PLAN, plan.model_dump(mode="json"), temporary)
    return plan


def _all_rows(choice: Choice, order: Order, batches: Batches) -> Iterator[Tokens]:
    """The rows of the plan in order, piece by piece."""
    for entries in (choice.train, choice.held_out):
        walk = Walk(order)
        for entry in entries:
            length = int(entry["length"])
            tokens = batches.tokens(int(entry["batch"]), int(entry["start"]), length)
            yield from rows_of(walk.segments(length, int(entry["first_id"])), tokens)


def _lengths(entries: Entries) -> Iterator[tuple[int, int]]:
    return zip(entries["length"].tolist(), entries["first_id"].tolist(), strict=True)


def _chunks(rows: Iterator[Conversation | Skipped], size: int) -> Iterator[list[Conversation | Skipped]]:
    """itertools.batched, which Python 3.11 has not."""
    while chunk := list(islice(rows, size)):
        yield chunk

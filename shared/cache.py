"""Reading a cache: rows by layer, class, role and split; their activations, ids and text.

    from shared import open_cache
    cache = open_cache("caches/demo")
    rows = cache.rows(layer=9, classes=["assistant"], split="held_out")
    x = cache.layer(9)[rows]                    # bfloat16 [n, d_model]

Reads only. What is there follows from commit records, never from Zarr's shapes: a missing chunk reads as
fill values there, silently.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from shared.commits import Record, check_record, read_records
from shared.errors import RecipeError
from shared.layer_rows import LayerRows, Rows, Verify, row_numbers
from shared.layout import TOKENIZER
from shared.plan import Plan, read_passes, read_plan
from shared.plan_arrays import PlanArray
from shared.tokens import Role, TokenClass, TokenType, enum_name

Split = Literal["train", "held_out"]
EnumT = TypeVar("EnumT", bound=IntEnum | IntFlag)
Named = Iterable[str | int]


@dataclass(frozen=True)
class TokenTable:
    """What is known of some rows' tokens; every field has one entry a row."""

    row: Rows
    token_id: npt.NDArray[np.int32]
    text: list[str]
    token_class: npt.NDArray[np.uint8]
    token_type: npt.NDArray[np.uint16]
    role: npt.NDArray[np.uint8]
    turn: npt.NDArray[np.uint16]
    conversation: Rows
    position: Rows
    """Index in its sequence."""

    def __str__(self) -> str:
        lines = ["     row  conv  pos  turn role       class           text"]
        for i in range(len(self.row)):
            role, token_class = enum_name(Role(self.role[i])), enum_name(TokenClass(self.token_class[i]))
            lines.append(f"{self.row[i]:8d} {self.conversation[i]:5d} {self.position[i]:4d} {self.turn[i]:5d} "
                         f"{role:10s} {token_class:15s} {self.text[i]!r}")
        return "\n".join(lines)


def open_cache(path: str | Path, verify: Verify = "first-touch") -> "Cache":
    """Open a cache for reading.

    Args:
        verify: when a block is compared with its committed checksum.

    Raises:
        StorageError: there is no cache. IdentityError: its format is newer. CorruptError: it is damaged.
    """
    return Cache(Path(path), verify)


class Cache:
    """A cache, open for reading. See the module for an example."""

    def __init__(self, path: Path, verify: Verify = "first-touch") -> None:
        self.path = path
        self.name = path.resolve().name
        self.plan: Plan = read_plan(path)
        self.geometry = self.plan.geometry
        self.identity: dict[str, Any] = self.plan.identity
        self.cache_id = self.plan.cache_id
        self.d_model = self.plan.d_model
        self.num_rows = self.plan.num_rows
        self.num_train_rows = self.plan.num_train_rows
        self.num_units = self.geometry.num_units
        self.rows_per_unit = self.geometry.rows_per_unit
        self.rows_per_shard = self.plan.rows_per_shard
        self._verify: Verify = verify
        self._passes = read_passes(path)
        self._pass_of = {layer: pass_id for pass_id, entry in self._passes.items() for layer in entry.layers}
        self._records: dict[str, dict[int, Record]] = {}
        self._layers: dict[int, LayerRows] = {}

    def __repr__(self) -> str:
        return f"Cache({str(self.path)!r}, layers {list(self.layers)}, {self.num_rows:,} rows planned)"

    # -- what is there ------------------------------------------------------------------------------

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with at least one committed unit."""
        return tuple(sorted(layer for layer in self._pass_of if self.committed_units(layer)))

    def records(self, layer: int) -> dict[int, Record]:
        """The valid commit records of a layer's pass, by unit. Units committed later are not seen."""
        pass_id = self._pass_of.get(layer)
        if pass_id is None:
            return {}
        if pass_id not in self._records:
            records = read_records(self.path, pass_id)
            for record in records.values():
                check_record(self.path, self.plan, pass_id, record)
            self._records[pass_id] = records
        return self._records[pass_id]

    def committed_units(self, layer: int) -> tuple[int, ...]:
        """The units of a layer that are there."""
        return tuple(self.records(layer))

    def unit_rows(self, unit: int) -> range:
        """The rows of a unit."""
        return self.geometry.unit_rows(unit)

    def layer(self, layer: int) -> LayerRows:
        """The activations of one layer.

        Raises:
            RecipeError: the layer is not harvested; the message lists those that are.
        """
        if layer not in self._layers:
            records = self.records(layer)
            if not records:
                there = ", ".join(map(str, self.layers)) or "none"
                raise RecipeError(f"{self.path} has no layer {layer}; layers there: {there}.")
            layers_of_pass = self._passes[self._pass_of[layer]].layers
            self._layers[layer] = LayerRows(self.path, self.geometry, layer, layers_of_pass, records, self._verify)
        return self._layers[layer]

    # -- the plan's arrays ----------------------------------------------------------------------------

    def array(self, name: str) -> PlanArray:
        """A plan array by its path in the group ("tokens/token_id"), to be read in ranges."""
        kind = name.split("/")[0]
        length = {
            "tokens": self.num_rows,
            "conversations": self.plan.num_conversations + (name == "conversations/offset"),
            "sequences": self.plan.num_sequences + 1,
        }[kind]
        return PlanArray(self.path, name, length, self.plan.digests)

    @cached_property
    def token_id(self) -> npt.NDArray[Any]:
        """Token ids ``[num_rows]``, int32."""
        return self.array("tokens/token_id").read()

    @cached_property
    def token_class(self) -> npt.NDArray[Any]:
        """`TokenClass` of every row ``[num_rows]``, uint8."""
        return self.array("tokens/token_class").read()

    @cached_property
    def token_type(self) -> npt.NDArray[Any]:
        """`TokenType` bits of every row ``[num_rows]``, uint16."""
        return self.array("tokens/token_type").read()

    @cached_property
    def role(self) -> npt.NDArray[Any]:
        """`Role` of every row ``[num_rows]``, uint8."""
        return self.array("tokens/role").read()

    @cached_property
    def turn(self) -> npt.NDArray[Any]:
        """Turn of every row in its conversation ``[num_rows]``, from 0, the system prompt included."""
        return self.array("tokens/turn").read()

    @cached_property
    def conversation_offset(self) -> npt.NDArray[Any]:
        """First row of every conversation, and the end ``[num_conversations + 1]``."""
        return self.array("conversations/offset").read()

    @cached_property
    def sequence_offset(self) -> npt.NDArray[Any]:
        """First row of every sequence, and the end ``[num_sequences + 1]``."""
        return self.array("sequences/offset").read()

    def conversation(self, rows: Rows) -> Rows:
        """Number of each row's conversation ``[num_rows]``."""
        return np.searchsorted(self.conversation_offset, rows, side="right").astype(np.int64) - 1

    def sequence(self, rows: Rows) -> Rows:
        """Number of each row's sequence ``[num_rows]``."""
        return np.searchsorted(self.sequence_offset, rows, side="right").astype(np.int64) - 1

    def position(self, rows: Rows) -> Rows:
        """Index of each row in its sequence ``[num_rows]``."""
        starts: Rows = self.sequence_offset[self.sequence(rows)]
        return np.asarray(rows, np.int64) - starts

    # -- choosing rows ----------------------------------------------------------------------------------

    def rows(
        self,
        layer: int | None = None,
        classes: Named | None = None,
        types: Named | None = None,
        roles: Named | None = None,
        split: Split | None = None,
        units: Sequence[int] | None = None,
    ) -> Rows:
        """Row numbers, ascending, that fit every condition given.

        Args:
            layer: only rows harvested for this layer, and finite there.
            classes: names or members of `TokenClass`.
            types: rows with any of these `TokenType` bits.
            roles: names or members of `Role`.
            split: "train" or "held_out".
            units: only rows of these units.

        Raises:
            RecipeError: an unknown name.
        """
        if layer is not None:
            committed = self.layer(layer).units
            units = committed if units is None else [unit for unit in units if unit in committed]
        elif units is None:
            units = range(self.num_units)
        ranges = [np.arange(r.start, r.stop, dtype=np.int64) for r in map(self.unit_rows, sorted(units))]
        rows: Rows = np.concatenate(ranges) if ranges else np.zeros(0, np.int64)
        if split is not None:
            if split not in ("train", "held_out"):
                raise RecipeError(f"split must be 'train' or 'held_out'; got {split!r}.")
            rows = rows[rows < self.num_train_rows] if split == "train" else rows[rows >= self.num_train_rows]
        if classes is not None:
            rows = rows[np.isin(self.token_class[rows], parse_names(TokenClass, classes))]
        if types is not None:
            bits = int(np.bitwise_or.reduce(parse_names(TokenType, types), initial=0))
            rows = rows[(self.token_type[rows] & bits) != 0]
        if roles is not None:
            rows = rows[np.isin(self.role[rows], parse_names(Role, roles))]
        if layer is not None and len(bad := self.layer(layer).nonfinite_rows):
            rows = rows[~np.isin(rows, bad)]
        return rows

    # -- text -------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids, from the cache itself."""
        return Tokenizer.from_file(str(self.path / TOKENIZER / "tokenizer.json"))

    def text(self, rows: Rows) -> str:
        """The rows' tokens as text, control tokens included."""
        rows = row_numbers(rows, self.num_rows)
        return str(self.tokenizer.decode(self.token_id[rows].tolist(), skip_special_tokens=False))

    def tokens(self, rows: Rows) -> TokenTable:
        """Ids, text, classes, types, roles, turns, conversations and positions of rows."""
        rows = row_numbers(rows, self.num_rows)
        ids = self.token_id[rows]
        text = self.tokenizer.decode_batch([[int(i)] for i in ids], skip_special_tokens=False)
        return TokenTable(
            row=rows,
            token_id=ids,
            text=text,
            token_class=self.token_class[rows],
            token_type=self.token_type[rows],
            role=self.role[rows],
            turn=self.turn[rows],
            conversation=self.conversation(rows),
            position=self.position(rows),
        )


def parse_names(kind: type[EnumT], names: Named) -> list[int]:
    """Numbers of enum members given by name or number.

    Raises:
        RecipeError: an unknown name; the message lists the known ones.
    """
    known = {enum_name(member): int(member) for member in kind}
    numbers = []
    for name in [names] if isinstance(names, str) else names:
        if isinstance(name, int):
            numbers.append(int(name))
        elif name in known:
            numbers.append(known[name])
        else:
            raise RecipeError(f"Unknown {kind.__name__} {name!r}. Known: {', '.join(known)}.")
    return numbers


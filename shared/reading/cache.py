"""Reading a cache: rows by layer, class, role and split; their activations, ids and text.

    from shared import open_cache
    cache = open_cache("caches/demo")
    rows = cache.rows(layer=9, classes=["assistant"], split="held_out")
    x = cache.layer(9)[rows]                    # bfloat16 [n, d_model]

Reads only. What is there follows from commit records, never from Zarr's shapes: a missing chunk reads as
fill values there, silently.

A cache may come from anybody: it can neither run code here, nor take more memory than its own size asks for, nor
have a file outside its folder read or written. Whatever does not follow from the plan is a `CorruptError`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from shared.errors import CorruptError, RecipeError
from shared.format.commits import Record, check_record, read_records
from shared.format.plan import Plan, check_pass, read_passes, read_plan
from shared.format.plan_arrays import PlanArray, check_plan_names, check_plan_sizes
from shared.format.tokens import Role, TokenClass, TokenType, enum_name
from shared.format.zarr_json import check_layer, check_root
from shared.reading.layer_rows import LayerRows, Rows, Verify, row_numbers
from shared.reading.vocabulary import Vocabulary, read_vocabulary

Split = Literal["train", "held_out"]
EnumT = TypeVar("EnumT", bound=IntEnum | IntFlag)
Named = Iterable[str | int]
Values = npt.NDArray[Any]
Condition = Callable[[Values], npt.NDArray[np.bool_]]


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
        verify: when a block is compared with its committed checksum: "first-touch", when its first row is read;
            "open", all blocks of a layer when the layer is opened; "never". Sizes of files are compared always, and
            so are the digests of everything that is not a block.

    Raises:
        StorageError: there is no cache. IdentityError: its format is newer. CorruptError: it is damaged, or holds
            what no cache of ours does.
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
        if verify not in get_args(Verify):
            raise RecipeError(f"verify must be one of {', '.join(get_args(Verify))}; got {verify!r}.")
        self._verify: Verify = verify
        check_plan_names(path, self.plan)
        check_plan_sizes(path, self.plan)
        check_root(path, self.plan)
        self._passes = read_passes(path)
        self._pass_of: dict[int, str] = {}
        for pass_id, entry in self._passes.items():
            check_pass(path, self.plan, entry)
            if twice := self._pass_of.keys() & set(entry.layers):
                raise CorruptError(f"{path}: layer {min(twice)} is in two passes.")
            self._pass_of |= dict.fromkeys(entry.layers, pass_id)
        self._records: dict[str, dict[int, Record]] = {}
        self._layers: dict[int, LayerRows] = {}
        self._arrays: dict[str, PlanArray] = {}

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
                check_record(self.path, self.plan, pass_id, record, self._passes[pass_id])
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
            pass_ = self._passes[self._pass_of[layer]]
            check_layer(self.path, self.geometry, pass_, layer)
            self._layers[layer] = LayerRows(self.path, self.geometry, layer, pass_, records, self._verify)
        return self._layers[layer]

    # -- the plan's arrays ----------------------------------------------------------------------------

    def array(self, name: str) -> PlanArray:
        """A plan array by its path in the group ("tokens/token_id"), to be read in ranges."""
        if name not in self._arrays:
            self._arrays[name] = PlanArray(self.path, name, self.plan)
        return self._arrays[name]

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
        return self._offsets("conversations/offset")

    @cached_property
    def sequence_offset(self) -> npt.NDArray[Any]:
        """First row of every sequence, and the end ``[num_sequences + 1]``."""
        return self._offsets("sequences/offset")

    def _offsets(self, name: str) -> Rows:
        offsets: Rows = self.array(name).read().astype(np.int64)
        if offsets[0] != 0 or offsets[-1] != self.num_rows or (np.diff(offsets) < 0).any():
            raise CorruptError(f"{self.path}: {name} does not ascend from 0 to {self.num_rows}.")
        return offsets

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
        if split not in (None, "train", "held_out"):
            raise RecipeError(f"split must be 'train' or 'held_out'; got {split!r}.")
        conditions = self._conditions(classes, types, roles)
        if layer is not None:
            committed = self.layer(layer).units
            units = committed if units is None else [unit for unit in units if unit in committed]
        elif units is None:
            units = range(self.num_units)
        found = [np.zeros(0, np.int64)]
        for unit in sorted(units):  # one by one: what is looked at of the plan's arrays need not fit in memory
            first, end = self.unit_rows(unit).start, self.unit_rows(unit).stop
            first = max(first, self.num_train_rows) if split == "held_out" else first
            rows = np.arange(first, min(end, self.num_train_rows) if split == "train" else end, dtype=np.int64)
            for name, fits in conditions:
                rows = rows[fits(self._values(name, rows))]
            found.append(rows)
        chosen: Rows = np.concatenate(found)
        if layer is not None and len(bad := self.layer(layer).nonfinite_rows):
            chosen = chosen[~np.isin(chosen, bad)]
        return chosen

    @staticmethod
    def _conditions(classes: Named | None, types: Named | None, roles: Named | None) -> list[tuple[str, Condition]]:
        """Which array is looked at, and which of its values fit; a row must fit all."""
        conditions: list[tuple[str, Condition]] = []
        if classes is not None:
            class_numbers = parse_names(TokenClass, classes)
            conditions.append(("token_class", lambda values: np.isin(values, class_numbers)))
        if types is not None:
            bits = int(np.bitwise_or.reduce(parse_names(TokenType, types), initial=0))
            conditions.append(("token_type", lambda values: (values & bits) != 0))
        if roles is not None:
            role_numbers = parse_names(Role, roles)
            conditions.append(("role", lambda values: np.isin(values, role_numbers)))
        return conditions

    def _values(self, name: str, rows: Rows) -> Values:
        """Values of some rows; read from their chunks alone, unless the whole array is in memory already."""
        whole: Values | None = self.__dict__.get(name)
        return self.array(f"tokens/{name}").take(rows) if whole is None else whole[rows]

    # -- text -------------------------------------------------------------------------------------------

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the ids mean, from the cache itself: enough to decode. To encode, load the model's tokenizer."""
        return read_vocabulary(self.path, self.plan.digests)

    def text(self, rows: Rows) -> str:
        """The rows' tokens as text, control tokens included."""
        rows = row_numbers(rows, self.num_rows)
        return self.vocabulary.decode(self._values("token_id", rows).tolist())

    def tokens(self, rows: Rows) -> TokenTable:
        """Ids, text, classes, types, roles, turns, conversations and positions of rows."""
        rows = row_numbers(rows, self.num_rows)
        ids = self._values("token_id", rows)
        return TokenTable(
            row=rows,
            token_id=ids,
            text=self.vocabulary.decode_each(ids.tolist()),
            token_class=self._values("token_class", rows),
            token_type=self._values("token_type", rows),
            role=self._values("role", rows),
            turn=self._values("turn", rows),
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


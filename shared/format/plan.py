"""plan.json: what a cache holds, decided before any GPU runs, and never changed afterwards.

It is written last and makes the plan valid. Everything a unit of work needs follows from it, so that any
number of workers agree without talking.
"""

from collections.abc import Mapping
from operator import eq
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError, IdentityError, StorageError
from shared.format.layout import FORMAT, FORMAT_VERSION, GROUP, PASSES, PLAN, Geometry, Tier
from shared.format.tree import check_tree
from shared.sealed_json import read_sealed

LAYER_ARRAYS = ("", "resid_post/", "norm/")
"""What has a zarr.json under ``layers/<L>/``: the layer's group, and its arrays."""

_WORD = "^[A-Za-z0-9._/-]{1,96}$"


class Plan(BaseModel):
    """The content of plan.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    cache_id: str
    """xxh3-128 of the identity."""
    identity: dict[str, Any]
    """Everything that decides what the rows are: model, tokenizer, template, data, order, sizes."""
    d_model: int = Field(gt=0, le=1 << 20)
    num_layers: int = Field(gt=0, le=10_000)
    """Decoder layers of the model."""
    num_rows: int = Field(gt=0, le=1 << 40)
    """Tokens of the plan, held-out ones included."""
    num_train_rows: int = Field(ge=0)
    """Rows before the held-out ones."""
    num_conversations: int = Field(ge=0, le=1 << 40)
    num_train_conversations: int = Field(ge=0)
    num_sequences: int = Field(ge=0, le=1 << 40)
    rows_per_shard: int = Field(gt=0, le=1 << 24, multiple_of=128)
    shards_per_unit: int = Field(gt=0, le=1 << 20)
    batch_tokens: int = Field(gt=0)
    """Padded tokens that go through the model at once."""
    sources: list[str]
    """Names of the data sets, by the number in ``conversations/source``."""
    num_read: int = Field(ge=0)
    """Conversations read from the source."""
    num_skipped: dict[str, int]
    """Malformed conversations by reason; they are listed in skipped.jsonl."""
    units: list[tuple[int, int]]
    """First row and end of every unit."""
    digests: dict[str, str]
    """xxh3-128 of every file that the plan wrote, by path in the cache."""

    @property
    def geometry(self) -> Geometry:
        """The sizes that decide where every row lies."""
        return Geometry(
            self.num_rows, self.num_train_rows, self.d_model, self.rows_per_shard, self.shards_per_unit
        )

    @model_validator(mode="after")
    def _numbers_agree(self) -> Self:
        if self.num_train_rows > self.num_rows or self.num_train_conversations > self.num_conversations:
            raise ValueError("more is to be trained on than there is")
        if not all(reason.isprintable() for reason in self.num_skipped):
            raise ValueError("a reason for skipping is no text")
        geometry = self.geometry
        wanted = ((rows.start, rows.stop) for rows in map(geometry.unit_rows, range(geometry.num_units)))
        if len(self.units) != geometry.num_units or not all(map(eq, self.units, wanted)):
            raise ValueError("its units are not those of its rows")
        return self

    def array_length(self, name: str) -> int:
        """Entries of one of the plan's arrays, by its path in the group."""
        return {
            "tokens": self.num_rows,
            "conversations": self.num_conversations + (name == "conversations/offset"),
            "sequences": self.num_sequences + 1,
        }[name.split("/")[0]]

    def name_of(self, what: str) -> str:
        """The name of the "model" or "dataset" as the identity gives it, fit to be printed."""
        named = self.identity.get(what)
        name = named.get("name") if isinstance(named, dict) else None
        return name if isinstance(name, str) and name.isprintable() and len(name) <= 200 else "?"


class Pass(BaseModel):
    """The content of passes/<pass>.json: the layers that one pass over the model harvests, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format_version: int = FORMAT_VERSION
    layers: list[int] = Field(min_length=1, max_length=10_000)
    compute_dtype: str = Field(pattern=_WORD)
    """Number format of the forward pass; what is stored is bfloat16 always."""
    attention: str = Field(pattern=_WORD)
    """transformers' attention implementation."""
    tier: Tier = "mapped"
    """How the rows lie on disk (`layout.Tier`); not what they are, so that both tiers have the same id."""
    digests: dict[str, str] = {}
    """xxh3-128 of the layers' zarr.json files, by path in the cache."""

    @property
    def pass_id(self) -> str:
        """Twelve hex digits of a hash of what identifies the pass."""
        return hex_digest(canonical_json(self.model_dump(exclude={"digests", "format_version", "tier"})))[:12]


def make_cache_id(identity: dict[str, Any]) -> str:
    """The cache's id: 32 hex digits that change when anything changes that decides the rows."""
    return hex_digest(canonical_json(identity))


def check_format(path: Path, content: Mapping[str, Any]) -> None:
    """Check the format version of a sealed file, before its fields are looked at.

    Raises:
        IdentityError: it is newer than this checkout. CorruptError: it is none.
    """
    version = content.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise IdentityError(f"{path} has cache format {version}; this checkout reads format {FORMAT_VERSION}. "
                            "Update the checkout.")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CorruptError(f"{path} has cache format {version!r}, which there never was.")


def read_plan(cache: Path) -> Plan:
    """Read and check a cache's plan.

    Raises:
        StorageError: there is no cache at ``cache``.
        IdentityError: it was written in a newer format.
        CorruptError: plan.json is damaged, or something else than files and folders is in the cache.
    """
    path = cache / PLAN
    if not path.exists() and not path.is_symlink():
        raise StorageError(f"There is no cache at {cache} (no {PLAN}). Make one: make harvest MODEL=... DATA=...")
    check_tree(cache)
    content = read_sealed(path)
    if content.get("format") != FORMAT:
        raise CorruptError(f"{path} is not the plan of a {FORMAT}.")
    check_format(path, content)
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        raise CorruptError(f"{path} is not a valid plan: {problem['loc']} {problem['msg']}.") from None
    if make_cache_id(plan.identity) != plan.cache_id:
        raise CorruptError(f"{path}: the cache id does not belong to the identity.")
    return plan


def read_pass(path: Path) -> Pass:
    """Read and check one pass file.

    Raises:
        StorageError: it cannot be read. CorruptError: it is damaged or misnamed.
        IdentityError: it was written in a newer format.
    """
    content = read_sealed(path)
    check_format(path, content)
    try:
        entry = Pass.model_validate(content)
    except ValidationError as error:
        raise CorruptError(f"{path} is not a valid pass: {error.errors()[0]['msg']}.") from None
    if entry.pass_id != path.stem:
        raise CorruptError(f"{path} holds another pass: {entry.pass_id}.")
    return entry


def read_passes(cache: Path) -> dict[str, Pass]:
    """The passes of a cache, by id.

    Raises:
        CorruptError: a pass file is damaged or misnamed.
    """
    return {path.stem: read_pass(path) for path in sorted((cache / PASSES).glob("*.json"))}


def check_pass(cache: Path, plan: Plan, entry: Pass) -> None:
    """Check that a pass is one over the plan's model, and names the metadata of its layers and nothing else.

    Raises:
        CorruptError: it is not.
    """
    if len(set(entry.layers)) < len(entry.layers) or not set(entry.layers) <= set(range(plan.num_layers)):
        raise CorruptError(f"{cache}: pass {entry.pass_id} has layers {entry.layers[:20]}, which are not layers of a "
                           f"model of {plan.num_layers}, each once.")
    wanted = {f"{GROUP}/layers/{layer}/{array}zarr.json" for layer in entry.layers for array in LAYER_ARRAYS}
    if different := entry.digests.keys() ^ wanted:
        raise CorruptError(f"{cache}: pass {entry.pass_id} does not name the files of its layers: {min(different)!r}.")

"""plan.json: what a cache holds, decided before any GPU runs, and never changed afterwards.

It is written last and makes the plan valid. Everything a unit of work needs follows from it, so that any
number of workers agree without talking.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError, IdentityError, StorageError
from shared.layout import FORMAT, FORMAT_VERSION, PASSES, PLAN, Geometry
from shared.sealed_json import read_sealed


class Plan(BaseModel):
    """The content of plan.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    cache_id: str
    """xxh3-128 of the identity."""
    identity: dict[str, Any]
    """Everything that decides what the rows are: model, tokenizer, template, data, order, sizes."""
    d_model: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    """Decoder layers of the model."""
    num_rows: int = Field(gt=0)
    """Tokens of the plan, held-out ones included."""
    num_train_rows: int = Field(ge=0)
    """Rows before the held-out ones."""
    num_conversations: int
    num_train_conversations: int
    num_sequences: int
    rows_per_shard: int = Field(gt=0, multiple_of=128)
    shards_per_unit: int = Field(gt=0)
    batch_tokens: int = Field(gt=0)
    """Padded tokens that go through the model at once."""
    sources: list[str]
    """Names of the data sets, by the number in ``conversations/source``."""
    num_read: int
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


class Pass(BaseModel):
    """The content of passes/<pass>.json: the layers that one pass over the model harvests, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    layers: list[int]
    compute_dtype: str
    """Number format of the forward pass; what is stored is bfloat16 always."""
    attention: str
    """transformers' attention implementation."""
    digests: dict[str, str] = {}
    """xxh3-128 of the layers' zarr.json files, by path in the cache."""

    @property
    def pass_id(self) -> str:
        """Twelve hex digits of a hash of what identifies the pass."""
        return hex_digest(canonical_json(self.model_dump(exclude={"digests"})))[:12]


def make_cache_id(identity: dict[str, Any]) -> str:
    """The cache's id: 32 hex digits that change when anything changes that decides the rows."""
    return hex_digest(canonical_json(identity))


def read_plan(cache: Path) -> Plan:
    """Read and check a cache's plan.

    Raises:
        StorageError: there is no cache at ``cache``.
        IdentityError: it was written in a newer format.
        CorruptError: plan.json is damaged.
    """
    path = cache / PLAN
    if not path.is_file():
        raise StorageError(f"There is no cache at {cache} (no {PLAN}). Make one: make harvest MODEL=... DATA=...")
    content = read_sealed(path)
    version = content.get("format_version")
    if content.get("format") != FORMAT:
        raise CorruptError(f"{path} is not the plan of a {FORMAT}.")
    if version != FORMAT_VERSION:
        raise IdentityError(f"{cache} has cache format {version!r}; this checkout reads format {FORMAT_VERSION}. "
                            "Update the checkout.")
    try:
        plan = Plan.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        raise CorruptError(f"{path} is not a valid plan: {problem['loc']} {problem['msg']}.") from None
    if make_cache_id(plan.identity) != plan.cache_id:
        raise CorruptError(f"{path}: the cache id does not belong to the identity.")
    return plan


def read_passes(cache: Path) -> dict[str, Pass]:
    """The passes of a cache, by id.

    Raises:
        CorruptError: a pass file is damaged or misnamed.
    """
    passes = {}
    for path in sorted((cache / PASSES).glob("*.json")):
        try:
            entry = Pass.model_validate(read_sealed(path))
        except ValidationError as error:
            raise CorruptError(f"{path} is not a valid pass: {error.errors()[0]['msg']}.") from None
        if entry.pass_id != path.stem:
            raise CorruptError(f"{path} holds another pass: {entry.pass_id}.")
        passes[path.stem] = entry
    return passes


def differing_fields(old: object, new: object, prefix: str = "") -> list[str]:
    """The identity fields that differ, one line each: ``model.revision: 'a' -> 'b'``."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted({*old, *new}):
            lines += differing_fields(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
        return lines
    return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]

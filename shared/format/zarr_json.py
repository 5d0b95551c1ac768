"""Checking that the zarr.json files say what the plan implies, with nothing but json.

We read by the plan and the records, every other reader by these files. Where they say something else, the two
would see different rows; and a codec that we never write may be one that runs code or unpacks a gigabyte from a
kilobyte. So each file must be exactly what we would have written, spelling aside.
"""

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from shared.bounded_json import parse_json
from shared.digests import canonical_json, hex_digest
from shared.errors import CorruptError
from shared.format.layout import BLOCK_ROWS, BLOSC, FORMAT, FORMAT_VERSION, GROUP, PLAN_ARRAYS, PLAN_CHUNK, Geometry
from shared.format.plan import Pass, Plan
from shared.format.tokens import Role, TokenClass, TokenType, enum_name
from shared.plain_files import read_known

_MAX_BYTES = 1 << 20
_LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
_BYTES = {"name": "bytes", "configuration": {}}
_CRC32C = {"name": "crc32c", "configuration": {}}
_NO_OBJECT: dict[str, Any] = {}


def group_attributes(plan: Plan) -> dict[str, Any]:
    """Attributes of the Zarr group: what a foreign reader needs to read the numbers as words."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "cache_id": plan.cache_id,
        "num_train_tokens": plan.num_train_rows,
        "token_class": {enum_name(member): int(member) for member in TokenClass},
        "token_type_bits": {enum_name(member): int(member) for member in TokenType},
        "role": {enum_name(member): int(member) for member in Role},
    }


def check_root(cache: Path, plan: Plan) -> None:
    """Check the root group's file: its attributes, and that it carries no metadata of arrays.

    Raises:
        CorruptError: it is not what the plan implies. StorageError: it cannot be read.
    """
    _check_group(cache, "zarr.json", plan.digests, group_attributes(plan))


def check_plan_array(cache: Path, plan: Plan, name: str) -> None:
    """Check the files of one of the plan's arrays and of the group above it; raises as `check_root`."""
    _check_group(cache, f"{name.split('/')[0]}/zarr.json", plan.digests)
    dtype = PLAN_ARRAYS[name]
    codecs = [_BYTES if dtype == "uint8" else _LITTLE, _CRC32C]
    _check_array(cache, name, plan.digests, _array(dtype, [plan.array_length(name)], [PLAN_CHUNK], codecs, 0))


def check_layer(cache: Path, geometry: Geometry, entry: Pass, layer: int) -> None:
    """Check the files of a layer's arrays; raises as `check_root`."""
    digests = entry.digests
    _check_group(cache, f"layers/{layer}/zarr.json", digests)
    rows, width = geometry.num_rows, geometry.d_model
    norm = _array("float32", [rows], [geometry.rows_per_shard], [_LITTLE, _CRC32C], "NaN")
    _check_array(cache, f"layers/{layer}/norm", digests, norm)
    sharding = {
        "chunk_shape": [BLOCK_ROWS, width],
        "codecs": [_LITTLE, _CRC32C],
        "index_codecs": [_LITTLE, _CRC32C],
        "index_location": "end",
    }
    codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    resid_post = _array("bfloat16", [rows, width], [geometry.rows_per_shard, width], codecs, "NaN")
    if entry.tier == "archive":
        level = _level(_read(cache, f"layers/{layer}/resid_post/zarr.json", digests))
        sharding["codecs"] = [_LITTLE, {"name": "blosc", "configuration": {**BLOSC, "clevel": level}}, _CRC32C]
    _check_array(cache, f"layers/{layer}/resid_post", digests, resid_post)


def _level(metadata: dict[str, Any]) -> int:
    """The level of compression that an archive's metadata name, which is up to its writer; 1 where there is none."""
    try:
        level = metadata["codecs"][0]["configuration"]["codecs"][1]["configuration"]["clevel"]
    except (LookupError, TypeError):
        return 1
    return level if type(level) is int and 0 <= level <= 9 else 1


def _array(dtype: str, shape: list[int], chunk: list[int], codecs: list[Any], fill_value: object) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": dtype,
        "shape": shape,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": codecs,
    }


def _check_array(cache: Path, name: str, digests: Mapping[str, str], wanted: dict[str, Any]) -> None:
    relative = f"{name}/zarr.json"
    found = _read(cache, relative, digests)
    for key in ("attributes", "storage_transformers", "dimension_names"):  # which may be spelled out, empty
        if not found.get(key):
            found.pop(key, None)
    if isinstance(found.get("codecs"), list):
        found["codecs"] = [_spelled_out(codec) for codec in found["codecs"]]
    _compare(cache, relative, found, wanted)


def _check_group(
    cache: Path, relative: str, digests: Mapping[str, str], attributes: Mapping[str, Any] = _NO_OBJECT
) -> None:
    found = _read(cache, relative, digests)
    if not found.get("consolidated_metadata"):
        found.pop("consolidated_metadata", None)  # else a copy of the arrays' metadata, which nobody checks
    if not _is_part(found.pop("attributes", {}), attributes):
        raise CorruptError(f"{cache / GROUP / relative}: its attributes are not those of this cache.")
    _compare(cache, relative, found, {"zarr_format": 3, "node_type": "group"})


def _is_part(found: object, wanted: object) -> bool:
    """Whether all that is there is as wanted. An older checkout may have written less."""
    if isinstance(found, dict) and isinstance(wanted, Mapping):
        return all(key in wanted and _is_part(value, wanted[key]) for key, value in found.items())
    return type(found) is type(wanted) and found == wanted


def _compare(cache: Path, relative: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if difference := _difference(found, wanted, ""):
        raise CorruptError(f"{cache / GROUP / relative}: {difference}. Other readers would see other rows than ours.")


def _difference(found: object, wanted: object, where: str) -> str | None:
    """The first place where two JSON values differ, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted({*found, *wanted})
        inner = (_difference(found.get(key), wanted.get(key), f"{where}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, inner), None)
    if isinstance(found, list) and isinstance(wanted, list):
        pairs = enumerate(zip_longest(found, wanted))
        return next(filter(None, (_difference(*pair, f"{where}[{number}]") for number, pair in pairs)), None)
    if type(found) is type(wanted) and found == wanted:  # for JSON, true is no 1 and 1.0 neither
        return None
    return f"{where} is {_short(found)}; by the plan it must be {_short(wanted)}"


def _short(value: object) -> str:
    return "nothing" if value is None else ascii(value)[:200]


def _spelled_out(codec: object) -> object:
    """A codec with its configuration, in which those of a shard are spelled out too."""
    if not isinstance(codec, dict):
        return codec
    configuration = codec.get("configuration") or {}
    if isinstance(configuration, dict):
        configuration = {
            key: [_spelled_out(inner) for inner in value] if "codecs" in key and isinstance(value, list) else value
            for key, value in configuration.items()
        }
    return {**codec, "configuration": configuration}


def _read(cache: Path, relative: str, digests: Mapping[str, str]) -> dict[str, Any]:
    path = cache / GROUP / relative
    data = read_known(path, _MAX_BYTES)
    if hex_digest(data) != digests.get(f"{GROUP}/{relative}"):
        raise CorruptError(f"{path} is damaged: its bytes are not those that were recorded.")
    try:
        found = parse_json(data, max_values=10_000, max_containers=1_000, max_nesting=10)
        canonical_json(found)
    except ValueError as error:
        raise CorruptError(f"{path} is no JSON of ours: {error}.") from None
    if not isinstance(found, dict):
        raise CorruptError(f"{path} is no metadata of Zarr.")
    return found

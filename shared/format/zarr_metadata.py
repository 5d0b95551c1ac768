"""The only door to zarr: it writes the group's metadata files, and knows bfloat16.

Block bytes are written straight to their files (through zarr-python that is ten times slower); what makes
them a Zarr v3 group are the zarr.json files that zarr-python itself produces here.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeGuard

import ml_dtypes
import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.dtype import Float32, data_type_registry
from zarr.storage import MemoryStore

from shared.format.layout import BLOCK_ROWS, BLOSC, PLAN_ARRAYS, PLAN_CHUNK, Geometry, Tier

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(Float32):
    """The ``bfloat16`` data type of the Zarr extension registry, over ml_dtypes' NumPy type.

    It borrows float32's spelling of scalars in JSON (numbers, "NaN", hexadecimal is not used) and differs
    in its NumPy type, its name and its size.
    """

    dtype_cls = type(_BFLOAT16)
    _zarr_v3_name = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[str, ...]] = ()  # type: ignore[assignment]

    @property
    def item_size(self) -> int:
        """Bytes of one value."""
        return 2

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """The Zarr type of ml_dtypes' bfloat16, which has one byte order, the machine's."""
        if dtype == _BFLOAT16:
            return cls(endianness="little")
        return super().from_native_dtype(dtype)

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return bool(dtype == _BFLOAT16)

    def to_native_dtype(self) -> Any:
        """ml_dtypes' bfloat16."""
        return _BFLOAT16

    def default_scalar(self) -> Any:
        """Zero."""
        return ml_dtypes.bfloat16(0)

    def _cast_scalar_unchecked(self, data: Any) -> Any:
        return ml_dtypes.bfloat16(data)

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        """A fill value from its JSON form."""
        return ml_dtypes.bfloat16(super().from_json_scalar(data, zarr_format=zarr_format))

    def to_json_scalar(self, data: object, *, zarr_format: Any) -> Any:
        """A fill value's JSON form."""
        return Float32().to_json_scalar(np.float32(data), zarr_format=zarr_format)  # type: ignore[arg-type]


def register_bfloat16() -> None:
    """Teach zarr-python to open our arrays, unless something else has registered a bfloat16 already."""
    if "bfloat16" not in data_type_registry.contents:
        data_type_registry.register("bfloat16", BFloat16)


def plan_metadata(attributes: dict[str, Any], lengths: dict[str, int]) -> dict[str, bytes]:
    """The zarr.json files of the group and of the plan's arrays, by path in the group.

    Args:
        attributes: what the group's attributes say (format, version, names).
        lengths: number of entries of every array of `layout.PLAN_ARRAYS`.
    """
    store = MemoryStore()
    root = zarr.create_group(store=store, attributes=attributes, zarr_format=3)
    for name, dtype in PLAN_ARRAYS.items():
        root.create_array(
            name,
            shape=(lengths[name],),
            chunks=(PLAN_CHUNK,),
            dtype=dtype,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
            fill_value=0,
        )
    root.require_group("layers")
    return _metadata_files(store, under="")


def layer_metadata(geometry: Geometry, layer: int, tier: Tier = "mapped") -> dict[str, bytes]:
    """The zarr.json files of one layer's arrays, by path in the group."""
    register_bfloat16()
    compressors = [BloscCodec(**BLOSC), Crc32cCodec()] if tier == "archive" else [Crc32cCodec()]
    store = MemoryStore()
    root = zarr.create_group(store=store, zarr_format=3)
    root.create_array(
        f"layers/{layer}/resid_post",
        shape=(geometry.num_rows, geometry.d_model),
        shards=(geometry.rows_per_shard, geometry.d_model),
        chunks=(BLOCK_ROWS, geometry.d_model),
        dtype=BFloat16(),
        serializer=BytesCodec(),
        compressors=compressors,
        fill_value=float("nan"),  # what is not harvested must not look like data
    )
    root.create_array(
        f"layers/{layer}/norm",
        shape=(geometry.num_rows,),
        chunks=(geometry.rows_per_shard,),
        dtype="float32",
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
    )
    return _metadata_files(store, under=f"layers/{layer}/")


def _metadata_files(store: MemoryStore, under: str) -> dict[str, bytes]:
    return {
        key: value.to_bytes()
        for key, value in sorted(store._store_dict.items())
        if key.endswith("zarr.json") and key.startswith(under)
    }

"""Makes the golden caches of the current format: python -m tests.golden.make_golden FOLDER

`format-1.mapped.tar.xz` and `format-1.archive.tar.xz` were made by this program when format 1 was new, and are opened
by tests for ever; they are never made again. A later format gets golden files of its own beside them.

They are packed because a cache's files are read-only, some are in folders that git would ignore, and most of the
plan's two megabytes are zeros. expected.json is written from the arrays below, without any reader of ours.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path
from unittest.mock import patch

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer, models

from shared import storage
from shared.digests import hex_digest
from shared.format.commits import Record, commit, new_writer_id, record_path
from shared.format.layout import FORMAT_VERSION, GROUP, PASSES, PLAN, PLAN_ARRAYS, SKIPPED, TMP, TOKENIZER, Geometry
from shared.format.plan import Pass, Plan, make_cache_id
from shared.format.plan_arrays import write_plan_array
from shared.format.zarr_json import group_attributes
from shared.format.zarr_metadata import layer_metadata, plan_metadata
from shared.sealed_json import seal, write_sealed
from shared.upkeep.transcode import transcode
from shared.writing.shards import UnitFiles

GEOMETRY = Geometry(num_rows=700, num_train_rows=600, d_model=8, rows_per_shard=256, shards_per_unit=1)
LAYERS = [0, 2]
PASS = Pass(layers=LAYERS, compute_dtype="float32", attention="sdpa")
NONFINITE = {2: [300, 301]}
SEQUENCE = 50
WORDS = ["hello", "there", "how", "are", "you", "fine"]


def plan_arrays() -> dict[str, np.ndarray]:
    """Values of the plan's arrays, of conversations of 50 rows."""
    rng = np.random.default_rng(1)
    rows, offset = GEOMETRY.num_rows, np.arange(0, GEOMETRY.num_rows + 1, SEQUENCE)
    number = len(offset) - 1
    return {
        "tokens/token_id": rng.integers(0, len(WORDS), rows),
        "tokens/token_class": rng.integers(0, 14, rows),
        "tokens/token_type": rng.integers(0, 256, rows),
        "tokens/role": rng.integers(0, 5, rows),
        "tokens/turn": np.arange(rows) % SEQUENCE // 10,
        "conversations/offset": offset,
        "conversations/key": np.sort(rng.integers(0, 2**63, number)),
        "conversations/flags": np.zeros(number),
        "conversations/source": np.zeros(number),
        "sequences/offset": offset,
    }


def rows_of(layer: int, unit: int) -> np.ndarray:
    """The committed rows of a unit of a layer: bfloat16 ``[num_rows, d_model]``; unit 1's are those of its repair."""
    rows = GEOMETRY.unit_rows(unit)
    values = np.random.default_rng([layer, unit]).standard_normal((len(rows), GEOMETRY.d_model)) * 10.0
    for row in NONFINITE.get(layer, []):
        if row in rows:
            values[row - rows.start, 3] = np.nan if row % 2 else np.inf
    return values.astype(ml_dtypes.bfloat16)


def write(cache: Path, name: str, data: bytes) -> dict[str, str]:
    storage.make_folder((cache / name).parent)
    storage.write_file(cache / name, data)
    return {name: hex_digest(data)}


def make_plan(cache: Path) -> Plan:
    storage.make_folder(cache / TMP)
    arrays = {name: values.astype(PLAN_ARRAYS[name]) for name, values in plan_arrays().items()}
    number = len(arrays["conversations/key"])
    identity = {"model": {"name": "golden/model", "revision": "none"}, "dataset": {"name": "golden"}, "seed": 1}
    plan = Plan(
        cache_id=make_cache_id(identity), identity=identity, d_model=GEOMETRY.d_model, num_layers=4,
        num_rows=GEOMETRY.num_rows, num_train_rows=GEOMETRY.num_train_rows, num_conversations=number,
        num_train_conversations=GEOMETRY.num_train_rows // SEQUENCE, num_sequences=number,
        rows_per_shard=GEOMETRY.rows_per_shard, shards_per_unit=GEOMETRY.shards_per_unit, batch_tokens=512,
        sources=["golden"], num_read=number + 1, num_skipped={"no messages": 1}, digests={},
        units=[(rows.start, rows.stop) for rows in map(GEOMETRY.unit_rows, range(GEOMETRY.num_units))],
    )
    digests = {}
    for name, values in arrays.items():
        digests |= write_plan_array(cache, name, values, cache / TMP)
    lengths = {name: len(values) for name, values in arrays.items()}
    for name, data in plan_metadata(group_attributes(plan), lengths).items():
        digests |= write(cache, f"{GROUP}/{name}", data)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    digests |= write(cache, f"{TOKENIZER}/tokenizer.json", tokenizer.to_str().encode())
    write(cache, SKIPPED, b'{"row": 3, "why": "no messages"}\n')
    plan = plan.model_copy(update={"digests": digests})
    write_sealed(cache / PLAN, plan.model_dump(mode="json"))
    digests = {}
    for layer in LAYERS:
        for name, data in layer_metadata(GEOMETRY, layer).items():
            digests |= write(cache, f"{GROUP}/{name}", data)
    entry = PASS.model_copy(update={"digests": digests})
    storage.make_folder(cache / PASSES)
    write_sealed(cache / PASSES / f"{PASS.pass_id}.json", entry.model_dump(mode="json"))
    return plan


def write_unit(cache: Path, plan: Plan, unit: int, generation: int = 0, repaired: bool = True) -> Record:
    """Write the files of a unit under temporary names; without ``repaired``, rows that a repair replaces."""
    writer = new_writer_id()
    files = UnitFiles(cache, GEOMETRY, unit, LAYERS, writer)
    rows = GEOMETRY.unit_rows(unit)
    for layer in LAYERS:
        values = rows_of(layer, unit) if repaired else np.zeros_like(rows_of(layer, unit))
        files.write(layer, rows.start, values.view(np.uint16), np.linalg.norm(values.astype(np.float32), axis=1))
    entries, blocks = files.finish(PASS.pass_id, generation)
    return Record(
        cache_id=plan.cache_id, pass_id=PASS.pass_id, unit=unit, generation=generation, writer=writer,
        rows=(rows.start, rows.stop), files=entries, blocks=blocks,
        nonfinite={layer: [row for row in bad if row in rows] for layer, bad in NONFINITE.items()},
        made_with={"device": "cpu", "threads": 1, "batches_halved": 0, "versions": {"torch": "2.13"}},
    )


def make(cache: Path) -> None:
    """A cache whose unit 1 was repaired, and whose unit 2 is committed with its files still temporary."""
    plan = make_plan(cache)
    for unit, generation, repaired in ((0, 0, True), (1, 0, False), (1, 1, True)):
        record = write_unit(cache, plan, unit, generation, repaired)
        assert commit(cache, record)
        storage.remove_tree(cache / TMP / record.writer)
    record = write_unit(cache, plan, 2)
    path = cache / TMP / record.writer / "record"
    storage.write_new_file(path, seal(record.model_dump(mode="json")))
    assert storage.create_if_absent(path, record_path(cache, PASS.pass_id, 2))


def expected() -> dict[str, object]:
    """What any reader must find, from the arrays themselves."""
    layers = {}
    for layer in LAYERS:
        values = np.concatenate([rows_of(layer, unit) for unit in range(GEOMETRY.num_units)])
        layers[str(layer)] = {
            "rows": hex_digest(values.tobytes()),
            "row 0": values[0].view(np.uint16).tolist(),
            "row 300": values[300].view(np.uint16).tolist(),
            "norms": hex_digest(np.linalg.norm(values.astype(np.float32), axis=1).astype("<f4").tobytes()),
            "nonfinite": NONFINITE.get(layer, []),
        }
    arrays = {name: hex_digest(values.astype(PLAN_ARRAYS[name]).tobytes()) for name, values in plan_arrays().items()}
    text = " ".join(WORDS[number] for number in plan_arrays()["tokens/token_id"][:20])
    return {"format_version": FORMAT_VERSION, "num_rows": GEOMETRY.num_rows, "layers": layers, "arrays": arrays,
            "text": text}


def pack(cache: Path, to: Path) -> None:
    """A tar file that depends on the cache's bytes alone."""

    def nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(to, "w:xz", preset=9) as packed:
        for path in sorted(cache.rglob("*")):
            packed.add(path, str(path.relative_to(cache)), recursive=False, filter=nobody)


def main() -> None:
    folder = Path(sys.argv[1])
    with patch("socket.gethostname", lambda: "golden"), tempfile.TemporaryDirectory() as temporary:
        mapped, archive = Path(temporary) / "mapped", Path(temporary) / "archive"
        make(mapped)
        transcode(mapped, archive, "archive", threads=1)
        (archive / "provenance.jsonl").unlink()
        for cache in (mapped, archive):
            pack(cache, folder / f"format-{FORMAT_VERSION}.{cache.name}.tar.xz")
    (folder / f"format-{FORMAT_VERSION}.expected.json").write_text(json.dumps(expected(), indent=1) + "\n")


if __name__ == "__main__":
    main()

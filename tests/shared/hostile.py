"""Making a cache hostile: everything that vouches for a file is made to vouch for what was put in its place.

A stranger can take every digest anew: they find damage, not forgery. So whatever is spoiled here is sealed again.
"""

import json
from pathlib import Path

from shared.digests import crc32c_bytes, hex_digest
from shared.format.commits import record_path
from shared.format.layout import GROUP, PASSES, PLAN, PLAN_CHUNK, Geometry
from shared.format.plan import make_cache_id
from shared.sealed_json import read_sealed, seal
from tests.shared import small

GEOMETRY = Geometry(300, 250, 2, 128, 1)
"""Three units of one shard each."""
PASS = f"{PASSES}/{small.PASS.pass_id}.json"
TOKENIZER_JSON = "tokenizer/tokenizer.json"
WORDS = ["a", "b", "c", "d", "e"]


def tokenizer(**changes):
    """The description of a tokenizer of five words."""
    content = {
        "version": "1.0", "added_tokens": [{"id": 4, "content": "e", "special": True}], "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS[:4])}, "unk_token": "a"},
    }
    return content | changes


def make(cache: Path) -> None:
    """A whole cache with a tokenizer, whose files may be written."""
    small.make(cache, GEOMETRY)
    put(cache, TOKENIZER_JSON, json.dumps(tokenizer()).encode())
    for path in cache.rglob("*"):
        path.chmod(0o755)


def replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def change_plan(cache: Path, change) -> None:
    content = read_sealed(cache / PLAN)
    change(content)
    content["cache_id"] = make_cache_id(content["identity"]) if content["cache_id"] != "forged" else "forged"
    replace(cache / PLAN, seal(content))


def change_pass(cache: Path, change) -> None:
    content = read_sealed(cache / PASS)
    change(content)
    replace(cache / PASS, seal(content))


def change_record(cache: Path, change, unit: int = 1) -> None:
    path = record_path(cache, small.PASS.pass_id, unit)
    content = read_sealed(path)
    change(content)
    replace(path, seal(content))


def put(cache: Path, name: str, data: bytes) -> None:
    """Write a file of the plan, the pass or a unit, and have it vouched for."""
    replace(cache / name, data)
    if name.endswith("zarr.json") and "/layers/" in name:
        change_pass(cache, lambda content: content["digests"].update({name: hex_digest(data)}))
    elif "/layers/" in name:
        for unit in range(GEOMETRY.num_units):
            entry = {"size": len(data), "xxh3": hex_digest(data)}
            change_record(cache, lambda content, new=entry: [
                file.update(new) for file in content["files"] if file["path"] == name], unit)
    else:
        change_plan(cache, lambda content: content["digests"].update({name: hex_digest(data)}))


def change_json(cache: Path, name: str, change) -> None:
    """Change a zarr.json or a tokenizer.json."""
    content = json.loads((cache / name).read_bytes())
    change(content)
    put(cache, name, json.dumps(content).encode())


def change_zarr(cache: Path, name: str, **changes) -> None:
    change_json(cache, f"{GROUP}/{name}/zarr.json" if name else f"{GROUP}/zarr.json", lambda old: old.update(changes))


def put_array(cache: Path, name: str, values) -> None:
    """The first chunk of a plan array."""
    data = values.tobytes() + bytes(values.itemsize * (PLAN_CHUNK - len(values)))
    put(cache, f"{GROUP}/{name}/c/0", data + crc32c_bytes(data))


def truncate(path: Path, size: int) -> None:
    """Give a file a size; what is new is a hole that takes no disk."""
    with path.open("r+b") as file:
        file.truncate(size)


def link_away(path: Path, to: Path) -> None:
    """Move a file or a folder out of the cache and put a link in its place."""
    path.rename(to)
    path.symlink_to(to)

"""Local data: the same rows from every format, plain or compressed, in files, folders and patterns."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from harvest import data_files
from harvest.data_files import read_file
from harvest.hub_dataset import stream_rows
from harvest.known_datasets import KNOWN_DATASETS
from harvest.opening import open_plan
from harvest.sources import find_source
from shared.errors import DataError, RecipeError, StorageError
from tests import tiny
from tests.harvest import hub_cache

CHATS = tiny.chats(30)
LINES = "".join(json.dumps({"messages": chat, "n": n}) + "\n" for n, chat in enumerate(CHATS)).encode()
TABLE = pa.table({"messages": CHATS, "n": range(len(CHATS))})


def write_arrow(path, new, rows_a_batch=7):
    with new(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE, rows_a_batch)


WRITERS = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.json": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES[:999]) + gzip.compress(LINES[999:])),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "a.jsonl.zst": lambda path: path.write_bytes(zstd(LINES[:999]) + zstd(LINES[999:])),
    "a.parquet": lambda path: pa.parquet.write_table(TABLE, path, row_group_size=11),
    "a.arrow": lambda path: write_arrow(path, pa.ipc.new_file),
    "b.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
}


def zstd(data):
    return pa.compress(data, "zstd", asbytes=True)


def rows(path, **named):
    return [row.as_dicts() for row in find_source(str(path), **named).read()]


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows_in_order(tmp_path, name):
    WRITERS[name](tmp_path / name)
    found = [*find_source(str(tmp_path / name)).read()]
    assert [row.as_dicts() for row in found] == CHATS
    assert [row.place for row in found] == [f"{name}:{number}" for number in range(1, len(CHATS) + 1)]


def test_what_datasets_saves_is_a_folder_of_data(tmp_path):
    datasets.Dataset.from_dict({"messages": CHATS}).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    assert rows(tmp_path / "saved") == CHATS


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in {"a.jsonl", "a.json"}])
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_file_that_is_damaged_or_of_another_kind_is_named(tmp_path, name, damage):
    path = tmp_path / name
    WRITERS[name](path)
    path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"something else altogether")
    if (name, damage) == ("b.arrow", "cut"):
        path.write_bytes(path.read_bytes()[:-40])  # its end alone is a mark that readers do not need
    with pytest.raises(DataError, match=f"Data file '.*{name}' cannot be read: .* again"):
        list(find_source(str(path)).read())


def test_a_folder_is_its_files_in_sorted_order_without_what_lies_beside_them(tmp_path):
    for name, part in (("2.jsonl", CHATS[10:]), ("1.jsonl", CHATS[:5])):
        tiny.write_jsonl(tmp_path / name, part)
    pa.parquet.write_table(TABLE.slice(5, 5), tmp_path / "10.parquet")
    for beside in "README.md", "state.json", "LICENSE.txt", ".hidden.jsonl":
        (tmp_path / beside).write_text("{}")
    (tmp_path / "sub.jsonl").mkdir()
    assert rows(tmp_path) == CHATS[:5] + CHATS[5:10] + CHATS[10:]
    assert rows(tmp_path / "[12].jsonl") == CHATS[:5] + CHATS[10:]
    assert rows(f"{tmp_path}/**/1.jsonl") == CHATS[:5]


def test_a_local_set_is_known_by_its_content_wherever_it_lies(tmp_path):
    def identity(name):
        return find_source(str(tmp_path / name)).identity["xxh3"]

    (tmp_path / "set").mkdir()
    tiny.write_jsonl(tmp_path / "set" / "1.jsonl", CHATS[:5])
    assert identity("set") == identity("set/1.jsonl") == identity("set/*.jsonl")
    tiny.write_jsonl(tmp_path / "set" / "2.jsonl", CHATS[5:])
    both = identity("set")
    assert both not in {identity("set/1.jsonl"), identity("set/2.jsonl")}
    (tmp_path / "set").rename(tmp_path / "other")
    assert identity("other") == both == find_source(f"{tmp_path}/other/*.jsonl").identity["xxh3"]
    tiny.write_jsonl(tmp_path / "other" / "2.jsonl", CHATS[6:])
    assert identity("other") != both


def test_a_cache_goes_on_with_a_folder_that_was_moved(tmp_path, llama):
    (tmp_path / "set").mkdir()
    for number in range(2):
        tiny.write_jsonl(tmp_path / "set" / f"{number}.jsonl", CHATS[number::2])
    plan = open_plan(tiny.make_job(llama, tmp_path / "set"), tmp_path / "cache")
    (tmp_path / "set").rename(tmp_path / "moved")
    assert open_plan(tiny.make_job(llama, tmp_path / "moved"), tmp_path / "cache") == plan


def test_text_files_are_one_row_each(tmp_path):
    (tmp_path / "1.txt").write_text("Once\nupon\n")
    (tmp_path / "2.txt.gz").write_bytes(gzip.compress("a café".encode()))
    (tmp_path / "3.txt").write_bytes(b"\xff")
    source = find_source(str(tmp_path), text=True)
    one, two, three = source.rows()
    assert (one, two) == (("1.txt", {"text": "Once\nupon\n"}), ("2.txt.gz", {"text": "a café"}))
    assert three[1].reason == "bad_unicode"
    assert source.identity["layout"] == "text"
    with pytest.raises(RecipeError, match="plain text"):
        find_source(str(tmp_path))


def test_text_of_a_table_that_is_no_utf8_skips_its_row_alone(tmp_path):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"prompt": ["a", "MARK", "c"], "response": ["a", "b", "c"]}), path,
                           use_dictionary=False, compression="none", write_statistics=False)
    path.write_bytes(path.read_bytes().replace(b"MARK", b"\xff\xfeRK"))
    found = [*find_source(str(path)).read()]
    assert [getattr(row, "reason", "ok") for row in found] == ["ok", "bad_unicode", "ok"]


def test_a_line_that_is_too_long_is_skipped_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "LONGEST_ROW", 500)
    good = json.dumps({"messages": CHATS[1][:1]})
    for long in "x" * 499, "x" * 500, "x" * 1700:
        (tmp_path / "a.jsonl").write_text(f"{good}\n{long}\n{good}\n{good}")
        found = [*find_source(str(tmp_path / "a.jsonl")).read()]
        assert [getattr(row, "reason", "ok") for row in found] == [
            "ok", "not_json" if len(long) < 500 else "too_long", "ok", "ok"]
        assert [row.place[-1] for row in found] == [*"1234"]


def test_a_file_that_goes_away_is_an_error_of_the_disk(tmp_path):
    for name in "a.jsonl", "a.parquet", "a.arrow":
        with pytest.raises(StorageError, match="No such file"):
            list(read_file(tmp_path / name))


PEAK = """
import resource, sys
from pathlib import Path
from harvest.arrow_files import read_parquet
from harvest.data_files import read_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(1 for _ in read_file(Path(sys.argv[1]))) == int(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_memory_does_not_grow_with_the_set(tmp_path, name):
    number, path = 24_000, tmp_path / name  # 60 MB of text
    chats = [[{"role": "user", "content": f"{row} " + "hello there " * 200}] for row in range(200)]
    if name.startswith("a.jsonl"):
        text = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats).encode()
        piece = gzip.compress(text, 1) if name.endswith("gz") else zstd(text)
        path.write_bytes(piece * (number // 200))
    else:
        batches = [pa.RecordBatch.from_pydict({"messages": chats})] * (number // 200)
        if name == "a.parquet":  # one row group, and no dictionary in which a chat is kept once
            pa.parquet.write_table(pa.Table.from_batches(batches), path, row_group_size=number, use_dictionary=False)
        else:
            with pa.ipc.new_file(str(path), batches[0].schema) as writer:
                writer.write_table(pa.Table.from_batches(batches))
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", PEAK, str(path), str(number)], cwd=root, check=True,
                          capture_output=True, text=True)
    assert int(done.stdout) < 25_000, f"{done.stdout} KiB"


def test_a_data_set_of_the_hub_is_streamed_by_split_and_configuration(tmp_path):
    for config, part in ("one", CHATS[:10]), ("two", CHATS[10:]):
        (tmp_path / config).mkdir()
        pa.parquet.write_table(pa.table({"messages": part, "n": range(len(part))}), tmp_path / config / "train.parquet")
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train.parquet\n"
        for name in ("one", "two")) + "---\n")
    found = [*stream_rows(str(tmp_path), "main", "train", "two")]
    assert found == [{"messages": chat} for chat in CHATS[10:]]  # of the columns only what is needed
    with pytest.raises(DataError, match=r"configuration 'default'.*one.*--set harvest.dataset_config=NAME"):
        list(stream_rows(str(tmp_path), "main", "train"))


def test_a_gated_set_says_where_to_accept_its_licence(monkeypatch):
    def refuse(*given, **named):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/chats' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(RecipeError, match=r"gated: accept its licence at huggingface.co/datasets/org/chats.*hf auth"):
        list(stream_rows("org/chats", hub_cache.COMMIT, "train"))


def test_an_alias_brings_its_repository_configuration_and_layout(monkeypatch, tmp_path):
    hub = hub_cache.use(monkeypatch, tmp_path)
    for known in KNOWN_DATASETS.values():
        root = hub / f"datasets--{known.repo.replace('/', '--')}"
        (root / "snapshots" / hub_cache.COMMIT).mkdir(parents=True)
        (root / "snapshots" / hub_cache.COMMIT / "README.md").write_text("x")
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text(hub_cache.COMMIT)
    tulu = find_source("tulu-3-sft-mixture")
    assert tulu.identity == {"name": "allenai/tulu-3-sft-mixture", "revision": hub_cache.COMMIT, "split": "train"}
    infinity = find_source("infinity-instruct")
    assert (infinity.identity["config"], infinity.layout) == ("7M", "conversations")
    assert find_source("infinity-instruct", config="0625").identity["config"] == "0625"
    assert find_source("pile-uncopyrighted", text=True).layout == "text"

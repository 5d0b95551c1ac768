"""A cache from anybody neither runs code nor takes all memory, and reads and writes nothing outside its folder."""

import os
import shutil
import socket
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from shared.digests import hex_digest
from shared.errors import CorruptError
from shared.format.commits import record_path
from shared.format.layout import COMMITS, GROUP, PASSES, PLAN, PLAN_ARRAYS, TMP, inside
from shared.reading.cache import open_cache
from shared.sealed_json import seal
from tests.shared import small
from tests.shared.hostile import (
    TOKENIZER_JSON,
    change_json,
    change_pass,
    change_plan,
    change_record,
    change_zarr,
    link_away,
    put,
    put_array,
    replace,
    truncate,
)
from tests.shared.hostile_reader import STEPS

PASS_ID = small.PASS.pass_id
RESID = "layers/2/resid_post"
SHARD = f"{GROUP}/{RESID}/c/1/0"
RECORD = str(record_path(Path(), PASS_ID, 1))
HUGE = 1 << 43
FINE = {step: ["ok"] for step in STEPS}


def of_plan(**changes):
    return lambda cache: change_plan(cache, lambda content: content.update(changes))


def of_pass(**changes):
    return lambda cache: change_pass(cache, lambda content: content.update(changes))


def of_record(**changes):
    return lambda cache: change_record(cache, lambda content: content.update(changes))


def of_entry(place, **changes):
    return lambda cache: change_record(cache, lambda content: content["files"][place].update(changes))


def of_zarr(name, **changes):
    return lambda cache: change_zarr(cache, name, **changes)


def of_shard_codec(**changes):
    return lambda cache: change_json(
        cache, f"{GROUP}/{RESID}/zarr.json", lambda content: content["codecs"][0]["configuration"].update(changes))


def of_tokenizer(**changes):
    return lambda cache: change_json(cache, TOKENIZER_JSON, lambda content: content.update(changes))


def linked(name):
    return lambda cache: link_away(cache / name, cache.parent / "moved")


def plan_of_more_rows(cache):
    """Rows without end: the numbers agree with each other, and no file is as large."""
    change_plan(cache, lambda content: content.update(
        num_rows=1 << 39, rows_per_shard=1 << 24, shards_per_unit=1 << 20, units=[(0, 1 << 39)]))


def two_passes_of_one_layer(cache):
    other = small.PASS.model_copy(update={"compute_dtype": "bfloat16"})
    digests = {name: "0" * 32 for layer in other.layers for name in (
        f"{GROUP}/layers/{layer}/zarr.json", f"{GROUP}/layers/{layer}/resid_post/zarr.json",
        f"{GROUP}/layers/{layer}/norm/zarr.json")}
    replace(cache / PASSES / f"{other.pass_id}.json",
            seal(other.model_copy(update={"digests": digests}).model_dump(mode="json")))


def record_of_a_unit_that_is_not_planned(cache):
    change_record(cache, lambda content: content.update(unit=9))
    (cache / RECORD).rename(record_path(cache, PASS_ID, 9))


def huge_shard(cache):
    """A shard of eight terabytes of nothing, as its record says."""
    truncate(cache / SHARD, HUGE)
    change_record(cache, lambda content: [
        file.update(size=HUGE) for file in content["files"] if file["path"] == SHARD])


def archive_that_is_none(cache):
    """Metadata and pass speak of compressed blocks."""
    change_pass(cache, lambda content: content.update(tier="archive"))
    blosc = {"name": "blosc", "configuration": {"typesize": 2, "cname": "zstd", "clevel": 1, "shuffle": "shuffle",
                                                "blocksize": 0}}
    for layer in small.LAYERS:
        change_json(cache, f"{GROUP}/layers/{layer}/resid_post/zarr.json",
                    lambda content: content["codecs"][0]["configuration"]["codecs"].insert(1, blosc))


def bind_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name may have 107 bytes
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def long_json(cache):
    replace(cache / PLAN, b'{"a": [' + b"{}," * 600_000 + b"{}]}")


def claim_without_end(cache):
    path = cache / TMP / "host-1-abcdef" / "heartbeat"
    replace(path, b"")
    truncate(path, HUGE)


def repeated_key(cache):
    name = f"{GROUP}/{RESID}/zarr.json"
    text = (cache / name).read_text().replace('"shape"', '"shape": [1, 1], "shape"', 1)
    put(cache, name, text.encode())


BOMB = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100} for _ in range(6)]}
READ = ("read",)
ALL = ("read", "verify")

# Name: how to spoil a cache, which steps must refuse it, what they say, exit code.
CACHES = {
    # Links and what is no file
    "plan.json is a link": (linked(PLAN), STEPS, "link"),
    "plan.json is a folder": (lambda cache: ((cache / PLAN).unlink(), (cache / PLAN).mkdir()), ALL, "neither"),
    "plan.json is a pipe": (lambda cache: ((cache / PLAN).unlink(), os.mkfifo(cache / PLAN)), STEPS, "neither"),
    "a record is a link to /dev/zero": (
        lambda cache: ((cache / RECORD).unlink(), (cache / RECORD).symlink_to("/dev/zero")), STEPS, "link"),
    "the group is a link": (linked(GROUP), STEPS, "link"),
    "passes/ is a link": (linked(PASSES), STEPS, "link"),
    "a folder of records is a link": (linked(f"{COMMITS}/{PASS_ID}"), STEPS, "link"),
    "a plan array is a link": (linked(f"{GROUP}/tokens/role/c/0"), STEPS, "link"),
    "a plan array's folder is a link": (linked(f"{GROUP}/tokens/role/c"), STEPS, "link"),
    "a shard is a link": (linked(SHARD), ALL, "link"),
    "a shard's folder is a link": (linked(f"{GROUP}/{RESID}/c/1"), ALL, "link"),
    "all shards' folder is a link": (linked(f"{GROUP}/{RESID}/c"), STEPS, "link"),
    "norms are a link": (linked(f"{GROUP}/layers/2/norm/c/1"), ALL, "link"),
    "the tokenizer is a link": (linked(TOKENIZER_JSON), STEPS, "link"),
    "a link lies among the temporaries": (lambda cache: (cache / TMP / "x").symlink_to("/"), STEPS, "link"),
    "a shard is a pipe": (lambda cache: ((cache / SHARD).unlink(), os.mkfifo(cache / SHARD)), ALL, "neither"),
    "provenance is a pipe": (lambda cache: os.mkfifo(cache / "provenance.jsonl"), STEPS, "neither"),
    "a claim is a socket": (lambda cache: bind_socket(cache / TMP / "claim"), STEPS, "neither"),
    "a name that moves the cursor": (lambda cache: replace(cache / "\x1b[2J", b""), STEPS, "name"),
    # JSON
    "plan.json is huge": (lambda cache: truncate(cache / PLAN, HUGE), ALL, "larger than"),
    "plan.json is deep": (lambda cache: replace(cache / PLAN, b'{"a":' * 300_000), ALL, "no JSON"),
    "plan.json holds a million objects": (long_json, ALL, "more than"),
    "a record is huge": (lambda cache: truncate(cache / RECORD, HUGE), ALL, "larger than"),
    "an identity is deep": (lambda cache: change_plan(cache, lambda content: content.update(
        identity={"a": reduce(lambda inner, _: [inner], range(60), [])})), ALL, "nested"),
    # The plan's numbers
    "more rows than files": (plan_of_more_rows, ALL, "files"),
    "rows beyond all bounds": (of_plan(num_rows=1 << 62), ALL, "num_rows"),
    "rows a shard beyond all bounds": (of_plan(rows_per_shard=1 << 40), ALL, "rows_per_shard"),
    "a width that no shard has": (of_plan(d_model=1 << 19), ALL, "size"),
    "units that are not the rows'": (of_plan(units=[(0, 10**9)]), ALL, "units"),
    "units without end": (of_plan(units=[(0, 1)] * 50_000), ALL, "units"),
    "more to train on than there is": (of_plan(num_train_rows=10**6), ALL, "more is to be trained on"),
    "a foreign identity": (of_plan(cache_id="forged"), ALL, "cache id"),
    "more conversations than files": (of_plan(num_conversations=10**9), ALL, "files"),
    "a plan that vouches for a file outside": (
        lambda cache: change_plan(cache, lambda content: content["digests"].update({"../secret": "0" * 32})), ALL,
        "cannot be one of its own"),
    "a plan that vouches for a file too many": (
        lambda cache: change_plan(cache, lambda content: content["digests"].update({"tmp/x": "0" * 32})), ALL,
        "does not follow"),
    # The plan's arrays
    "a short plan array": (lambda cache: truncate(cache / GROUP / "tokens/role/c/0", 100), ALL, "expected 65540"),
    "an endless plan array": (lambda cache: truncate(cache / GROUP / "tokens/role/c/0", HUGE), ALL, "expected 65540"),
    "negative token ids": (lambda cache: put_array(cache, "tokens/token_id", np.full(300, -5, "<i4")), READ, "-5"),
    "classes that there are not": (lambda cache: put_array(cache, "tokens/token_class", np.full(300, 99, "u1")), READ,
                                   "99"),
    "sequences that go backwards": (
        lambda cache: put_array(cache, "sequences/offset", np.array([0, 200, 100, 150, 200, 250, 300], "<i8")), READ,
        "ascend"),
    "a conversation beyond the rows": (
        lambda cache: put_array(cache, "conversations/offset", np.array([0, 50, 100, 150, 200, 250, 1 << 60], "<i8")),
        READ, "ascend"),
    # Passes and records
    "a layer that the model has not": (of_pass(layers=[0, 10**6]), ALL, "another pass"),
    "a layer in two passes": (two_passes_of_one_layer, READ, "two passes"),
    "a pass that vouches for a file outside": (
        lambda cache: change_pass(cache, lambda content: content["digests"].update({"/etc/passwd": "0" * 32})), ALL,
        "does not name"),
    "an unknown tier": (of_pass(tier="pickle"), ALL, "tier|pass"),
    "an archive that is none": (archive_that_is_none, ALL, "index|damaged"),
    "plan.json as a temporary": (of_entry(0, temporary=PLAN), ALL, "no temporary"),
    "another unit's temporary": (of_entry(0, temporary="tmp/host-1-abcdef/unit-000002/0-resid_post-2"), ALL,
                                 "no temporary"),
    "a file outside as a temporary": (of_entry(0, temporary="tmp/../../secret"), ALL, "not a valid record"),
    "an absolute path": (of_entry(0, path="/etc/passwd"), ALL, "not a valid record"),
    "a path with NUL": (of_entry(0, path="a\0b"), ALL, "not a valid record"),
    "another unit's file": (of_entry(0, path=f"{GROUP}/layers/0/resid_post/c/2/0"), ALL, "named wrongly"),
    "plan.json as a shard": (of_entry(0, path=PLAN), ALL, "named wrongly"),
    "a file named twice": (lambda cache: change_record(cache, lambda content: content["files"].append(
        content["files"][0] | {"temporary": content["files"][1]["temporary"] + "x"})), ALL, "named wrongly"),
    "a record without files": (of_record(files=[]), ALL, "named wrongly"),
    "a shard of terabytes": (huge_shard, ALL, "size"),
    "block checksums elsewhere": (lambda cache: change_record(cache, lambda content: content["blocks"].update(
        path=PLAN, temporary=PLAN)), ALL, "block checksums"),
    "a writer that is a path": (of_record(writer="../.."), ALL, "record"),
    "a unit that is not planned": (record_of_a_unit_that_is_not_planned, ALL, "the plan has 3"),
    "non-finite rows of another unit": (of_record(nonfinite={2: [0, 1]}), ALL, "non-finite"),
    "non-finite rows without end": (of_record(nonfinite={2: [130] * 10**5}), ALL, "non-finite"),
    "non-finite rows of another layer": (of_record(nonfinite={7: [130]}), ALL, "non-finite"),
    # What other readers are told
    "a codec that unpickles": (of_zarr("tokens/role", codecs=[{"name": "numcodecs.pickle"}]), ALL, "codecs"),
    "a codec that inflates": (of_zarr("tokens/role", codecs=[{"name": "bytes"}, {"name": "zstd"}]), ALL, "codecs"),
    "a codec inside the shard": (of_shard_codec(codecs=[{"name": "numcodecs.zlib"}]), ALL, "codecs"),
    "another dtype": (of_zarr(RESID, data_type="float16"), ALL, "data_type"),
    "another shape": (of_zarr(RESID, shape=[1 << 40, 2]), ALL, "shape"),
    "another shape of chunks": (of_zarr("layers/0/norm", chunk_grid={"name": "regular", "configuration": {
        "chunk_shape": [1]}}), ALL, "chunk_grid"),
    "another fill value": (of_zarr(RESID, fill_value=0.0), ALL, "fill_value"),
    "a shape that is there twice": (repeated_key, ALL, "twice"),
    "metadata in two places": (of_zarr("", consolidated_metadata={"metadata": {}}), ALL, "consolidated_metadata"),
    "attributes of another cache": (of_zarr("", attributes={"cache_id": "0" * 32}), ALL, "attributes"),
    "attributes that rename the classes": (of_zarr("", attributes={"token_class": {"user": 12}}), ALL, "attributes"),
    # Text and whoever writes
    "a decoder that multiplies": (of_tokenizer(decoder=BOMB), READ, "something longer"),
    "a decoder that backtracks": (of_tokenizer(decoder={
        "type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}), READ, "regular expression"),
    "a decoder nobody knows": (of_tokenizer(decoder={"type": "Python"}), READ, "a step 'Python'"),
    "a token of a megabyte": (of_tokenizer(model={"vocab": {"a" * (1 << 20): 0}}), READ, "longer than"),
    "a tokenizer that is none": (lambda cache: put(cache, TOKENIZER_JSON, b"[]"), READ, "no tokenizer"),
    "a tokenizer without end": (lambda cache: truncate(cache / TOKENIZER_JSON, HUGE), ALL, "larger|at most"),
    "a heartbeat without end": (claim_without_end, ("status",), "larger than"),
    # A newer format is another identity, and no damage
    "a newer plan": (of_plan(format_version=2, news=1), ALL, "format 2", 76),
    "a newer pass": (of_pass(format_version=2, news=1), READ, "format 2", 76),
    "a newer record": (of_record(format_version=2, news=1), READ, "format 2", 76),
    "no plan": (lambda cache: shutil.rmtree(cache), STEPS, "no cache", 74),
}


@pytest.fixture
def cache(honest, memory_folder):
    (memory_folder / "secret").write_text("nobody's business")
    return Path(shutil.copytree(honest, memory_folder / "cache"))


def everything(folder):
    """Every file and folder with its size and the time of its last change."""
    found = [(str(path), path.lstat()) for path in sorted(folder.rglob("*"))]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_mode) for name, stat in found]


def test_a_cache_of_ours_is_read_in_a_gigabyte(reader, cache):
    assert reader.look_at(cache, cache.parent) == FINE


def test_the_cache_itself_may_be_a_link(reader, cache):
    (cache.parent / "link").symlink_to(cache)
    assert reader.look_at(cache.parent / "link", cache.parent) == FINE


@pytest.mark.parametrize("name", CACHES)
def test_a_hostile_cache_is_refused_and_nothing_is_written(name, reader, cache):
    spoil, refusing, says, *code = CACHES[name]
    spoil(cache)
    before = everything(cache.parent)
    ended = reader.look_at(cache, cache.parent)
    assert everything(cache.parent) == before
    for step in STEPS:
        outcome = ended[step]
        if step in refusing:
            assert outcome[1:2] == (code or [77]), (step, outcome)
            assert any(part in outcome[2] for part in says.split("|")), (step, outcome)
        else:
            assert outcome == ["ok"] or outcome[1] in {74, 76, 77}, (step, outcome)


NAMES = [
    "", ".", "..", "/", "//", "/etc/passwd", "../x", "a/..", "a/../../x", "a/./b", "./a", "a//b", "a/", "/a", "~/x",
    "~root", "a\0b", "a\nb", "a\x1b[2J", "a\\b", "..\\x", "C:\\x", "C:/x", "\\\\host\\x", ".hidden", "a/.hidden", "a b",
    " a", "a ", "a\u202eb", "a\u2024\u2024/x", "a%2e%2e", "a*", "a?b", "$HOME", "`x`", "a;b", "file:///x", "a" * 600,
    "a/" * 300 + "b", "ä", "\ud800",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_we_never_give_is_refused(name, tmp_path):
    with pytest.raises(CorruptError):
        inside(tmp_path, name)


def test_names_of_ours_are_not_refused(honest):
    for path in honest.rglob("*"):
        assert inside(honest, str(path.relative_to(honest))) == path


def test_every_plan_array_must_be_vouched_for(cache):
    for name in PLAN_ARRAYS:
        change_plan(cache, lambda content, name=name: content["digests"].pop(f"{GROUP}/{name}/c/0"))
        with pytest.raises(CorruptError):
            open_cache(cache)
        data = (cache / GROUP / name / "c/0").read_bytes()
        change_plan(cache, lambda content, name=name, data=data: content["digests"].update({
            f"{GROUP}/{name}/c/0": hex_digest(data)}))
    open_cache(cache)

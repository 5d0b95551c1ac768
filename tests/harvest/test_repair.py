"""`repair` computes damaged units again and touches nothing else; `add-layers` fills beside what is there."""

import contextlib
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from harvest.from_plan import find_planned_model
from harvest.remedy import sort_damage
from harvest.repair import repair_units
from shared import storage
from shared.errors import CorruptError, RecipeError
from shared.format.commits import newest_generations, read_record, record_path
from shared.format.layout import GROUP
from shared.format.plan import read_plan
from shared.reading.cache import open_cache
from shared.sealed_json import read_sealed, seal
from shared.upkeep.survey import survey
from shared.upkeep.verify import surveyed_files, verify
from tests import tiny
from tests.crash.oracle import leftovers


@pytest.fixture
def copy(cache_folder, tmp_path):
    """A cache of layers 0 and 2, of 13 units, to damage."""
    return Path(shutil.copytree(cache_folder, tmp_path / "copy"))


@pytest.fixture
def pass_id(copy):
    [folder] = (copy / "commits").iterdir()
    return folder.name


def shard(copy, layer, unit):
    """The first of a unit's two shards."""
    return copy / GROUP / f"layers/{layer}/resid_post/c/{2 * unit}/0"


def norms(copy, layer, unit):
    return copy / GROUP / f"layers/{layer}/norm/c/{2 * unit + 1}"


def flip(path, position=777):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def reseal(path, **changes):
    path.chmod(0o644)
    path.write_bytes(seal(read_sealed(path) | changes))


def arrays(cache):
    """The bytes of everything that a repair must bring back."""
    folders = ("activations.zarr", "tokenizer", "passes")
    return {path.relative_to(cache): path.read_bytes() for name in folders for path in (cache / name).rglob("*")
            if path.is_file()}


def status_of(cache):
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in cache.rglob("*") if path.is_file()}


def test_repair_mends_every_kind_of_damage_to_units_and_touches_no_other_file(
    command, copy, cache_folder, llama, pass_id
):
    flip(shard(copy, 2, 3))
    flip(shard(copy, 0, 3), -1)
    norms(copy, 0, 5).unlink()
    [checksums] = copy.glob("commits/*/000007.g0.*.crc32c")
    flip(checksums, 0)
    record_path(copy, pass_id, 9).write_text("{}")
    shard(copy, 0, 10).chmod(0o644)
    shard(copy, 0, 10).write_bytes(shard(copy, 0, 10).read_bytes()[:1000])
    swapped = shard(copy, 0, 11), shard(copy, 2, 11)
    data = [path.read_bytes() for path in swapped]
    for path, other in zip(swapped, reversed(data), strict=True):
        path.chmod(0o644)
        path.write_bytes(other)
    flip(copy / GROUP / "layers/2/zarr.json", 5)
    before = status_of(copy)
    ended = command.run("repair", copy, "--model", llama)
    assert ended.code == 0, ended.err
    assert "6 units computed again and verified" in ended.out
    assert "zarr.json files written again" in ended.out
    assert "Warning" not in ended.err
    assert arrays(copy) == arrays(cache_folder)
    mended = {3, 5, 7, 9, 10, 11}
    assert {unit for unit, newest in newest_generations(copy, pass_id).items() if newest == 1} == mended
    after = status_of(copy)
    theirs = {f"c/{number}" for unit in mended for number in (2 * unit, 2 * unit + 1)}
    changed = {path for path in before if after[path] != before[path]}
    changed = {path for path in changed if path.name not in {"zarr.json", "provenance.jsonl"}}
    assert {str(path).split("/resid_post/")[-1].split("/norm/")[-1].removesuffix("/0") for path in changed} == theirs
    assert command.run("verify", copy).code == 0
    assert "6 units repaired (3 5 7 9-11)" in command.run("status", copy).out
    assert command.run("repair", copy).out.endswith("nothing to repair\n")  # and asks for no model


def test_killed_at_any_time_and_given_again_it_ends_with_the_bytes_that_were_there(
    command, copy, cache_folder, llama, pass_id
):
    for number in range(13):
        flip(shard(copy, 2, number))
    started = time.monotonic()
    assert command.run("repair", copy, "--units", "0", "--model", llama).code == 0
    seconds = time.monotonic() - started
    for part in (0.5, 0.9, 1.2):
        ended = command.kill_after(seconds * part, "repair", copy, "--model", llama)
        assert ended.code in {0, -signal.SIGKILL}, ended.err
    ended = command.run("repair", copy, "--model", llama)
    assert ended.code == 0, ended.err
    assert arrays(copy) == arrays(cache_folder)
    assert set(newest_generations(copy, pass_id).values()) == {1}
    if not ended.out.endswith("nothing to repair\n"):  # else the last kill came after all units, and gc clears up
        assert not list((copy / "tmp").iterdir())


class Killed(BaseException):
    """SIGKILL, as far as a test in one process can have it: nothing is written afterwards."""


def repair_here(cache, llama):
    """Verify and repair, in this process."""
    found = survey(cache)
    damage = sort_damage(found, [checked for checked in verify(surveyed_files(found)) if checked.problem])
    repair_units(found, damage.units, find_planned_model(cache, found.plan, str(llama)), "cpu")
    return damage.num_units


@pytest.mark.parametrize("every", [14, pytest.param(1, marks=[pytest.mark.crash, pytest.mark.timeout(1800)])])
def test_killed_before_any_operation_a_unit_is_damaged_as_before_or_whole(copy, cache_folder, llama, every, tmp_path):
    flip(shard(copy, 2, 3))
    clean = open_cache(cache_folder).layer(2)[:].view(np.uint16)
    mine = open_cache(copy).unit_rows(3)
    names = []
    trial = Path(shutil.copytree(copy, tmp_path / "counted"))
    with storage.observe(lambda operation, path: names.append(operation)):
        assert repair_here(trial, llama) == 1
    outcomes = []
    for last in [*range(0, len(names), every), names.index("link", names.index("fsync")) + 2]:
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(copy, trial)
        count = iter(range(100_000))

        def die(operation, path, count=count, last=last):
            if next(count) >= last:
                raise Killed

        with storage.observe(die), contextlib.suppress(Killed):
            repair_here(trial, llama)
        layer = open_cache(trial).layer(2)
        others = np.delete(np.arange(len(clean)), mine)
        assert (layer[others].view(np.uint16) == clean[others]).all()
        try:
            assert (layer[np.array(mine)].view(np.uint16) == clean[mine]).all()
            outcomes.append("whole")
        except CorruptError:
            outcomes.append("damaged")
        repair_here(trial, llama)
        assert arrays(trial) == arrays(cache_folder)
        assert leftovers(trial) == []
    assert set(outcomes) == {"damaged", "whole"}


def test_units_that_are_named_are_computed_without_asking_what_is_wrong(command, copy, cache_folder, llama, pass_id):
    ended = command.run("repair", copy, "--units", "1 4-5", "--model", llama)
    assert ended.code == 0, ended.err
    assert [unit for unit, newest in newest_generations(copy, pass_id).items() if newest] == [1, 4, 5]
    assert arrays(copy) == arrays(cache_folder)
    absent = command.run("repair", copy, "--units", "40")
    assert absent.code == 2
    assert "40" in absent.err
    assert "units there: 0-12" in absent.err


def test_the_model_is_looked_for_by_what_the_plan_says_of_it(command, copy, llama, qwen2, tmp_path):
    flip(shard(copy, 2, 3))
    nowhere = command.run("repair", copy)
    assert nowhere.code == 2
    assert f"--model path/to/{llama.name}" in nowhere.err
    other = command.run("repair", copy, "--model", qwen2)
    assert other.code == 76
    assert "model.weights" in other.err
    config = Path(shutil.copytree(llama, tmp_path / "renamed"))
    ended = command.run("repair", copy, "--model", config)  # under another name, with the same weights
    assert ended.code == 0, ended.err


def test_code_that_comes_with_a_model_is_run_only_where_the_user_says_so(copy):
    plan = read_plan(copy)
    known_as = {"name": "org/name", "revision": "0" * 40, "weights": "x", "trust_remote_code": True}
    trusting = plan.model_copy(update={"identity": plan.identity | {"model": known_as}})
    for where in (None, "org/name"):
        with pytest.raises(RecipeError, match=f"org/name.*{'0' * 40}.*--trust-remote-code"):
            find_planned_model(copy, trusting, where)
    with pytest.raises(RecipeError, match="hub models"):
        find_planned_model(copy, trusting, str(copy), trust_remote_code=True)


def test_other_bytes_than_before_are_told_with_what_was_different(command, copy, llama, pass_id):
    for unit, changes in ((3, {"device": "NVIDIA H200", "threads": 64}), (4, {})):
        path = record_path(copy, pass_id, unit)
        record = read_sealed(path)
        record["files"][0]["xxh3"] = "0" * 32  # as another device would have computed it
        reseal(path, files=record["files"], made_with=record["made_with"] | changes)
    ended = command.run("repair", copy, "--model", llama, "--threads", 1)
    assert ended.code == 0, ended.err
    assert f"unit 3 of pass {pass_id} has other bytes" in ended.err
    assert f"unit 4 of pass {pass_id} has other bytes" in ended.err
    assert "NVIDIA H200" in ended.err
    assert "64" in ended.err


def test_what_only_the_conversations_hold_is_not_computed_and_the_user_is_told_what_to_do(command, copy, llama):
    flip(copy / GROUP / "tokens/role/c/0")
    flip(shard(copy, 2, 3))
    ended = command.run("repair", copy, "--model", llama)
    assert ended.code == 77
    assert "1 units computed again" in ended.out  # units do not follow from roles
    assert "with plan instead of run and another --cache" in ended.err
    assert f"{GROUP}/tokens/role/c/0" in ended.err
    flip(copy / GROUP / "tokens/token_id/c/0")
    flip(shard(copy, 2, 3))
    ended = command.run("repair", copy, "--model", llama)
    assert ended.code == 77
    assert "cannot be repaired yet" in ended.err
    flip(copy / "plan.json", 100)
    ended = command.run("repair", copy, "--model", llama)
    assert ended.code == 77
    assert "plan.json" in ended.err
    assert "Traceback" not in ended.err


def test_a_damaged_pass_is_written_again_by_the_harvest_itself_as_the_message_says(
    command, copy, cache_folder, llama, chat_file
):
    [path] = (copy / "passes").iterdir()
    flip(path, 20)
    ended = command.run("repair", copy, "--model", llama)
    assert ended.code == 77
    assert f"remove passes/{path.name}, and give the harvest command" in ended.err.replace("\n", " ")
    path.unlink()
    tiny.harvest(tiny.make_job(llama, chat_file, num_tokens=1_000_000), copy)
    assert tiny.promised(copy) == tiny.promised(cache_folder)


def test_added_layers_fill_the_units_that_are_there_with_the_bytes_of_a_harvest_of_their_own(
    command, llama, chat_file, tmp_path
):
    cache = tiny.make_cache(tmp_path / "cache", llama, chat_file, num_tokens=1024, compute_dtype="bfloat16").path
    before = status_of(cache)
    killed = command.kill_after(0.4, "add-layers", cache, "--layers", "1 3", "--model", llama, "--threads", 1)
    assert killed.code in {0, -signal.SIGKILL}, killed.err
    ended = command.run("add-layers", cache, "--layers", "3, 1", "--model", llama, "--threads", 1)
    assert ended.code == 0, ended.err
    assert "make train LAYER=" in ended.out
    opened = open_cache(cache)
    assert opened.layers == (0, 1, 2, 3)
    assert opened.committed_units(1) == opened.committed_units(0)
    assert len(opened.committed_units(0)) < opened.num_units
    alone = tiny.make_cache(
        tmp_path / "alone", llama, chat_file, num_tokens=1024, layers=[1, 3], compute_dtype="bfloat16"
    )
    rows = opened.rows(layer=3)
    assert (alone.layer(3)[rows].view(np.uint16) == opened.layer(3)[rows].view(np.uint16)).all()
    changed = {path.name for path, status in before.items() if status_of(cache).get(path) != status}
    assert changed <= {"provenance.jsonl"}
    assert command.run("verify", cache).code == 0


def test_layers_that_cannot_be_added_are_refused_by_name(command, copy, llama, chat_file, tmp_path):
    for layers, code, says in (("9", 2, "has layers 0 to 3"), ("0 1", 76, "has layers [0, 2] in one pass"),
                               ("x", 2, "expected numbers"), ("", 2, "No layers given")):
        ended = command.run("add-layers", copy, "--layers", layers, "--model", llama)
        assert ended.code == code, ended
        assert says in ended.err
    assert command.run("add-layers", copy, "--layers", "2 0", "--model", llama).code == 0  # there already
    job = tiny.make_job(llama, chat_file)
    tiny.open_plan(job, tmp_path / "planned")
    ended = command.run("add-layers", tmp_path / "planned", "--layers", "1", "--model", llama)
    assert ended.code == 2
    assert "no activations yet" in ended.err


def test_a_reader_keeps_its_rows_while_a_unit_is_repaired_under_it(command, copy, llama, pass_id):
    layer = open_cache(copy).layer(2)
    rows = layer[:300].copy()
    assert command.run("repair", copy, "--units", "0-1", "--model", llama).code == 0
    assert read_record(record_path(copy, pass_id, 0, 1)).generation == 1
    assert (layer[:300].view(np.uint16) == rows.view(np.uint16)).all()

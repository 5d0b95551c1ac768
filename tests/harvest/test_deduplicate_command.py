"""`python -m harvest deduplicate`: what it writes, what it says, and what it leaves alone."""

import errno
import json

import pytest

from harvest.config import Deduplicate
from harvest.deduplicate import find_duplicates
from harvest.jsonl_output import ENDINGS, write_jsonl
from harvest.kept_chats import write_kept
from harvest.sources import find_source
from shared import storage
from shared.errors import DataError, TryAgainError
from tests import tiny

PROMPT = " ".join(f"rule{number}" for number in range(25))


def chat(number, system=PROMPT):
    return [{"role": "system", "content": system},
            {"role": "user", "content": f"Frage {number}: wieviel ist 2 × 3? 🌍"},
            {"role": "assistant", "content": " ".join(f"{number}-{word}" for word in range(30))}]


ALIKE = [chat(0), chat(1), chat(2, system="none"), chat(3), chat(2, system="other")]


@pytest.fixture
def data(tmp_path):
    return tiny.write_jsonl(tmp_path / "my.jsonl", ALIKE)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(data, output, report=None, **settings):
    source, options = find_source(str(data)), Deduplicate(**settings)
    return write_kept(source, find_duplicates(source.read, options), options, output, report)


def test_the_command_writes_what_is_kept_and_says_for_what_the_rest_was_dropped(command, data, tmp_path):
    with data.open("a") as file:
        file.write('{"messages": 3}\n')
    output = tmp_path / "out" / "kept.jsonl"
    ended = command.run("deduplicate", data, output)
    assert ended.code == 0, ended
    assert lines(output) == [{"messages": ALIKE[0]}, {"messages": ALIKE[2]}]
    report = lines(output.with_name("kept.jsonl.dropped"))
    assert [(line["place"], line["duplicate_of"]) for line in report] == [
        ("my.jsonl:2", "my.jsonl:1"), ("my.jsonl:4", "my.jsonl:1"), ("my.jsonl:5", "my.jsonl:3")]
    assert all(len(line["ngram"].split()) == 20 for line in report)
    assert report[0]["ngram"] in PROMPT
    for said in ("read     5 conversations", "skipped  1 rows (no_messages 1)", "kept     2 (40.0%)",
                 "dropped  3 (60.0%)", "2 like my.jsonl:1: 'rule", "1 like my.jsonl:3: '2-"):
        assert said in ended.out
    assert {path.name for path in output.parent.iterdir()} == {"kept.jsonl", "kept.jsonl.dropped"}
    before = output.read_bytes()
    assert command.run("deduplicate", data, output).code == 0
    assert output.read_bytes() == before


def test_options_reach_the_rule_and_a_dry_run_writes_nothing(command, data, tmp_path):
    there = sorted(tmp_path.iterdir())
    for options, kept in (([], 2), (["--roles", "user assistant"], 4), (["--n", "31"], 5), (["--n", 2], 1),
                          (["--unit", "characters", "--roles", "user"], 1), (["--memory", 0], 2),
                          (["--roles", "user", "--short-texts", "samples"], 4)):
        ended = command.run("deduplicate", data, tmp_path / "kept.jsonl", "--dry-run", *options)
        assert f"kept     {kept} (" in ended.out, (options, ended)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_again_as_it_was(ending, data, tmp_path):
    output = tmp_path / f"kept{ending}"
    summary = write(data, output, roles=["user", "assistant"])
    assert (summary.num_read, summary.num_dropped) == (5, 1)
    assert [row.as_dicts() for row in find_source(str(output)).read()] == ALIKE[:4]
    before = output.read_bytes()
    write(data, output, roles=["user", "assistant"])
    assert output.read_bytes() == before


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename", "fsync_folder"])
def test_a_full_disk_leaves_the_file_that_was_there_and_nothing_else(operation, data, tmp_path):
    output = tmp_path / "kept.jsonl"
    output.write_text("of before")

    def refuse(name, path):
        if name == operation:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with storage.observe(refuse), pytest.raises(TryAgainError):
        write(data, output)
    assert output.read_text() == "of before" or operation == "fsync_folder"
    assert {path.name for path in tmp_path.iterdir()} == {"my.jsonl", "kept.jsonl"}


def test_nothing_is_written_where_there_is_no_conversation_or_reading_fails(data, tmp_path):
    data.write_text('{"messages": 3}\n')
    with pytest.raises(DataError, match="All 1 rows are malformed"):
        write(data, tmp_path / "kept.jsonl", tmp_path / "report")
    data.write_text("")
    with pytest.raises(DataError, match="empty"):
        write(data, tmp_path / "kept.jsonl", tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["my.jsonl"]


def test_data_that_changed_between_two_readings_is_refused(data, tmp_path):
    source, options = find_source(str(data)), Deduplicate()
    duplicates = find_duplicates(source.read, options)
    for changed in (ALIKE[:4], [*ALIKE, chat(9)], [ALIKE[0], chat(7, "new"), *ALIKE[2:]]):
        tiny.write_jsonl(data, changed)
        with pytest.raises(DataError, match="is not what it was"):
            write_kept(source, duplicates, options, tmp_path / "kept.jsonl", tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["my.jsonl"]


def test_a_large_file_is_written_in_pieces(tmp_path):
    values = [{"messages": "x" * 1000, "number": number} for number in range(3000)]
    with write_jsonl(tmp_path / "a.jsonl") as keep:
        for value in values:
            keep(value)
    assert lines(tmp_path / "a.jsonl") == values

"""Encoding over processes, kept on disk: the same plan for any number of them, and after any kill."""

import numpy as np
import pytest

from harvest import encoding
from harvest.encoding import Batches, EncodedBatch, Encoding, encode_batch, parse
from harvest.opening import open_plan
from harvest.order import TOKEN
from harvest.template import ChatTemplate
from shared import storage
from shared.format.layout import ENCODED, PLAN, TMP
from shared.upkeep.garbage import find_garbage
from shared.writing.writers import Watch
from tests import tiny

CONVERSATIONS = [
    tiny.conversation(*((message["role"], message["content"]) for message in chat)) for chat in tiny.chats(40, seed=5)
]
REFUSED = tiny.conversation(("user", "\U000f0000\U000f0001\U000f0002\U000f0003\U000f0004\U000f0005\U000f0006"))


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(tiny.make_tokenizer("llama3"), {"date_string": "26 Jul 2024"})


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of eight, others than the first three in other processes, four on their way."""
    for name, value in (("BATCH", 8), ("LAG", 4), ("_ALONE", 3)):
        monkeypatch.setattr(encoding, name, value)
    monkeypatch.setattr("harvest.plan.BATCH", 8)


def results(encoder, folder, processes=1):
    found = []
    folder.mkdir(exist_ok=True)
    with Encoding(encoder, 30, Batches(folder), processes) as work:
        for start in range(0, len(CONVERSATIONS), 8):
            found += work.put(CONVERSATIONS[start : start + 8])
        return [*found, *work.rest()]


def same(one: EncodedBatch, other: EncodedBatch) -> bool:
    return one.to_bytes("") == other.to_bytes("")


def test_a_batch_is_its_conversations_cut_one_after_the_other(template):
    batch = encode_batch(template, [CONVERSATIONS[0], REFUSED, CONVERSATIONS[1]], 30)
    first, second = template.encode(CONVERSATIONS[:2])
    assert [skip.reason for skip in batch.skipped] == ["private_use"]
    assert batch.length.tolist() == [min(len(first), 30), 0, min(len(second), 30)]
    assert batch.truncated.tolist() == [len(first) > 30, False, len(second) > 30]
    assert batch.start.tolist() == [0, batch.length[0], batch.length[0]]
    for name in TOKEN.names:
        assert batch.tokens[name].tolist() == [*getattr(first, name)[:30], *getattr(second, name)[:30]]


def test_bytes_give_the_batch_back_and_damaged_or_other_ones_give_nothing(template):
    batch = encode_batch(template, [*CONVERSATIONS[:3], REFUSED], 30)
    data = batch.to_bytes("these")
    assert same(parse(data, "these"), batch)
    assert parse(data, "those") is None
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 1
        assert parse(bytes(damaged), "these") is None
    for size in (0, 5, 20, len(data) - 1):
        assert parse(data[:size], "these") is None


def test_tokens_are_read_back_from_the_file_alone(template, tmp_path):
    batch = encode_batch(template, CONVERSATIONS[:5], 30)
    (tmp_path / "kept").mkdir()
    Batches(tmp_path / "kept").save(3, batch.to_bytes(""))
    there = Batches(tmp_path / "kept")
    for start, length in zip(batch.start.tolist(), batch.length.tolist(), strict=True):
        assert (there.tokens(3, start, length) == batch.tokens[start : start + length]).all()


def test_any_number_of_processes_gives_the_same_in_the_same_order(template, tmp_path, small_batches):
    alone = results(template, tmp_path / "one")
    several = results(template, tmp_path / "two", processes=2)
    assert [number for number, _ in alone] == [number for number, _ in several] == [0, 1, 2, 3, 4]
    assert all(same(one, other) for (_, one), (_, other) in zip(alone, several, strict=True))
    for number in range(5):
        name = f"{number:08d}"
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_what_is_kept_is_not_encoded_again(template, tmp_path, small_batches):
    expected = results(template, tmp_path / "kept")
    (tmp_path / "kept" / "00000001").write_bytes(b"damaged")
    (tmp_path / "kept" / "00000003").unlink()
    encoded = []

    class Counting:
        def encode(self, conversations):
            encoded.append(list(conversations))
            return template.encode(conversations)

    again = results(Counting(), tmp_path / "kept")
    assert encoded == [CONVERSATIONS[8:16], CONVERSATIONS[24:32]]
    assert all(same(one, other) for (_, one), (_, other) in zip(expected, again, strict=True))


def test_plans_of_any_number_of_processes_are_the_same_bytes(llama, chat_file, tmp_path, small_batches):
    job = tiny.make_job(llama, chat_file, plan_tokens=2000)
    plans = [open_plan(job, tmp_path / str(processes), processes) for processes in (1, 2)]
    assert plans[0] == plans[1]
    assert tiny.promised(tmp_path / "1") == tiny.promised(tmp_path / "2")
    assert not (tmp_path / "1" / TMP / ENCODED).exists()


class Killed(BaseException):
    """SIGKILL, as far as one process can have it."""


def test_a_plan_that_is_killed_goes_on_where_it_was(llama, chat_file, tmp_path, small_batches, monkeypatch):
    job = tiny.make_job(llama, chat_file)
    open_plan(job, tmp_path / "whole")
    files = []

    def die(operation, path):
        if operation == "rename" and ENCODED in path.parts:
            files.append(path)
        if len(files) > 4:
            raise Killed

    with storage.observe(die), pytest.raises(Killed):
        open_plan(job, tmp_path / "killed")
    encoded = []
    encode = ChatTemplate.encode
    monkeypatch.setattr(ChatTemplate, "encode", lambda self, chats: encoded.append(len(chats)) or encode(self, chats))
    open_plan(job, tmp_path / "killed")
    assert sum(encoded) == 60 - 4 * 8
    assert tiny.promised(tmp_path / "killed") == tiny.promised(tmp_path / "whole")


def test_what_another_configuration_left_is_removed_and_gc_finds_what_a_kill_left_behind(llama, chat_file, tmp_path):
    cache = tmp_path / "cache"
    (cache / TMP / ENCODED / "another").mkdir(parents=True)
    open_plan(tiny.make_job(llama, chat_file), cache)
    assert not (cache / TMP / ENCODED).exists()
    assert (cache / PLAN).exists()
    (cache / TMP / ENCODED).mkdir()  # as if it had been killed just before
    assert [one.path.name for one in find_garbage(cache, Watch())] == [ENCODED]
    open_plan(tiny.make_job(llama, chat_file), cache)
    assert not (cache / TMP / ENCODED).exists()


def test_a_dry_run_keeps_nothing(template):
    batches = Batches(None)
    batches.save(0, b"x")
    assert batches.load(0, "") is None
    assert np.array_equal(encode_batch(template, [], 5).length, np.zeros(0))

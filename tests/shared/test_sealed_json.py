"""JSON that carries its own checksum."""

import contextlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import CorruptError, StorageError
from shared.sealed_json import read_sealed, seal, write_sealed

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
contents = st.dictionaries(st.sampled_from(["a", "b", "ä\n"]), values, max_size=3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("sealed") / "file.json"


@given(content=contents)
def test_what_is_written_is_read(path, content):
    write_sealed(path, content)
    assert read_sealed(path) == content


@given(content=contents, data=st.data())
def test_a_damaged_file_is_never_believed(path, content, data):
    sealed = bytearray(seal(content))
    position = data.draw(st.integers(0, len(sealed) - 1))
    sealed[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(sealed)
    with contextlib.suppress(CorruptError):
        assert read_sealed(path) == content  # white space that became other white space


@given(junk=st.binary(max_size=40))
def test_any_bytes_are_corrupt_and_nothing_worse(path, junk):
    path.write_bytes(junk)
    with pytest.raises(CorruptError):
        read_sealed(path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "null", '{"xxh3": 3}', '{"a": NaN}', '{"a": "\\ud800"}', "[" * 200_000, '{"a":' * 100_000,
             '{"a": ' + "9" * 5000 + "}", '{"a": 1, "a": 2}', '{"a": [' + "{}," * 500_000 + "{}]}",
             '{"a": [' + "0," * 2_000_000 + "0]}", '{"a": ' + "[" * 51 + "]" * 51 + "}"],
    ids=lambda text: text[:20],
)
def test_json_that_is_not_ours_is_corrupt(path, text):
    path.write_text(text)
    with pytest.raises(CorruptError):
        read_sealed(path)


def test_a_missing_or_huge_file_is_refused(tmp_path):
    with pytest.raises(StorageError):
        read_sealed(tmp_path / "nosuch.json")
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(CorruptError, match="larger than"):
        read_sealed(tmp_path / "huge.json")


def test_what_no_reader_would_believe_is_not_written(tmp_path):
    with pytest.raises(StorageError, match="no reader"):
        write_sealed(tmp_path / "file.json", {"nonfinite": {"2": list(range(2_000_001))}})
    assert not list(tmp_path.iterdir())


def test_links_pipes_and_folders_are_not_read(tmp_path):
    write_sealed(tmp_path / "file.json", {})
    (tmp_path / "link").symlink_to(tmp_path / "file.json")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(CorruptError, match="plain files"):
            read_sealed(tmp_path / name)


def test_the_same_content_has_the_same_bytes():
    assert seal({"b": 1, "a": [1.5, "é"]}) == seal(json.loads('{"a": [1.5, "\\u00e9"], "b": 1}'))

"""Every error that a user can cause says what is wrong and where, with the value, and what to do next.

The errors of tests/error_cases/ are raised by the code itself, one after the other. docs/errors.md is held to them.
"""

import ast
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared.errors import UserError
from tests import tiny
from tests.error_cases import data_and_disk, identity_and_damage, options, training
from tests.error_cases.case import CASES

DOCS = Path(__file__).parent.parent / "docs" / "errors.md"

assert all((options, training, data_and_disk, identity_and_damage))  # importing them fills CASES


@pytest.fixture
def world(llama, qwen2, chat_file, cache_folder, tmp_path, monkeypatch):
    """What the cases work on: models, chats, copies of a cache."""
    monkeypatch.chdir(tmp_path)
    there = SimpleNamespace(llama=llama, qwen2=qwen2, data=chat_file, cache=cache_folder, tmp=tmp_path,
                            patch=monkeypatch)
    there.job = lambda **settings: tiny.make_job(llama, chat_file, **settings)
    there.copy = lambda: Path(shutil.copytree(cache_folder, tmp_path / "copy"))
    there.model = lambda: Path(shutil.copytree(llama, tmp_path / "model"))
    return there


def test_there_are_at_least_forty_of_every_kind():
    assert len(CASES) >= 40
    assert {case.code for case in CASES} == {2, 65, 74, 75, 76, 77}
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_message_says_what_where_and_what_to_do_and_is_documented(case, world):
    with pytest.raises(UserError) as caught:
        case.cause(world)
    text = caught.value.told()
    assert caught.value.exit_code == case.code, text
    for word in case.says:
        assert word in text
    assert case.then in text
    assert not re.search(r"\bNone\b|Traceback|<\w+ object|\bError\(|\\n", text), text
    assert "  " not in text.replace("\n  ", "\n").strip() or case.code == 76, text  # a table has columns
    assert all(len(line) <= 600 for line in text.splitlines()), text
    last = text.splitlines()[-1]
    assert re.search(r"[.!?]$|--\w|\b[A-Z]+=\S|(make|python -m|hf auth) ", last), text
    flat = re.sub(r"\s+", " ", text)
    assert any(fits(fragment, flat) for fragment in fragments(sections()[case.code])), f"not in docs/errors.md: {text}"


def sections():
    """The text of docs/errors.md by exit code."""
    parts = re.split(r"^## (\d+)[^\n]*\n", DOCS.read_text(encoding="utf-8"), flags=re.M)
    return {int(code): text for code, text in zip(parts[1::2], parts[2::2], strict=True)}


def fragments(section):
    """The messages of a section's tables, with dots where values stand."""
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.M)


def fits(fragment, text):
    return re.search(".*".join(re.escape(part.strip()) for part in fragment.split("...")), text) is not None


def test_the_list_has_a_section_for_every_exit_code_and_only_real_messages():
    assert {2, 65, 74, 75, 76, 77, 130, 143} <= {*sections()}
    words = source_words()
    for section in sections().values():
        for fragment in fragments(section):
            for part in filter(None, map(str.strip, fragment.split("..."))):
                assert part in words, f"{part!r} is said nowhere"


def source_words():
    """All text of our programs, with literals that stand in a row joined."""
    found = []
    for folder in ("shared", "harvest", "train", "pipelines"):
        for path in sorted((DOCS.parent.parent / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"\s+", " ", node.value))
    return "\n".join(found)

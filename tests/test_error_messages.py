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
from tests.error_cases import (
    comparing,
    data_and_disk,
    foreign,
    identity_and_damage,
    language_model,
    options,
    training,
)
from tests.error_cases.case import CASES

DOCS = Path(__file__).parent.parent / "docs" / "errors.md"

# Importing them fills CASES.
assert all((options, training, comparing, data_and_disk, foreign, identity_and_damage, language_model))


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


KINDS = {kind.__name__: kind.exit_code for kind in UserError.__subclasses__()}


def raised():
    """Every error that our programs make: its exit code, where, and its message with a bar where a value stands."""
    for folder in ("shared", "harvest", "train", "pipelines"):
        for path in sorted((DOCS.parent.parent / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in KINDS and node.args:
                    message = re.sub(r"\s+", " ", message_of(node.args[0]))
                    yield KINDS[node.func.id], f"{path.name}:{node.lineno}", message


def message_of(node):
    """The text of an expression, of two that it may be both; a bar stands for what is not written there."""
    match node:
        case ast.Constant(value=str()):
            return node.value
        case ast.JoinedStr():
            return "".join(map(message_of, node.values))
        case ast.BinOp(op=ast.Add()):
            return message_of(node.left) + message_of(node.right)
        case ast.IfExp():
            return message_of(node.body) + message_of(node.orelse)
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[ast.List()]):
            return "".join(map(message_of, node.args[0].elts))
    return "|"


def test_every_message_of_the_source_is_in_the_list_under_its_exit_code():
    found = list(raised())
    assert len(found) > 150
    assert {code for code, *_ in found} == {2, 65, 74, 75, 76, 77}
    listed = {code: fragments(section) for code, section in sections().items()}
    unknown = [
        f"{code} {where}: {message}" for code, where, message in found
        if len(re.findall(r"[a-z]", message)) > 5  # else all of it comes from elsewhere
        and not any(fits(fragment, message) for fragment in listed[code])
    ]
    assert not unknown, "\n".join(unknown)


def source_words():
    """All text of our programs, with literals that stand in a row joined."""
    found = []
    for folder in ("shared", "harvest", "train", "pipelines"):
        for path in sorted((DOCS.parent.parent / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(re.sub(r"\s+", " ", node.value))
    return "\n".join(found)

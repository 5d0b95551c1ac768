"""Tokens as pieces of text, and a conversation turn by turn."""

import numpy as np
import pytest

from pipelines.conversation_view import CLASS_MEANINGS, LONGEST, choose_conversation, show_conversation
from pipelines.token_text import pieces, visible
from shared.format.tokens import TokenClass


@pytest.fixture(scope="module")
def opened(demo):
    return demo.cache()


def test_pieces_cover_all_rows_and_join_the_tokens_of_one_character(opened):
    rows = np.arange(opened.num_train_rows, opened.num_rows)
    found = pieces(opened, rows)
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == len(rows)
    text = "".join(piece.text for piece in found)
    assert text == opened.text(rows)
    assert "\N{SHRUG}" in text
    assert any(piece.stop - piece.start > 1 for piece in found)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a↵b"), ("\t", "⇥"), ("\x00", "\\x00"), (" café", " café"), ("\u202e", "\\u202e")],
)
def test_what_would_not_be_seen_gets_a_sign(text, shown):
    assert visible(text) == shown


def test_a_kept_newline_stands_behind_its_sign():
    assert visible("a\n", line_breaks=True) == "a↵\n"


def test_a_held_out_conversation_is_shown_with_all_its_classes(opened):
    number = choose_conversation(opened)
    start, stop = opened.conversation_offset[number : number + 2]
    assert start >= opened.num_train_rows
    shown = show_conversation(opened, number)
    assert shown.num_shown == min(LONGEST, stop - start)
    rows = np.arange(start, start + shown.num_shown)
    assert [turn.role for turn in shown.turns[:2]] == ["system", "user"]
    assert {entry.token_class for entry in shown.legend} == {
        TokenClass(kind).name.lower() for kind in opened.token_class[rows]}
    assert sum(entry.num_tokens for entry in shown.legend) == shown.num_shown
    text = "".join(token.text for turn in shown.turns for token in turn.tokens)
    assert text.replace("↵\n", "\n").replace("↵", "\n") == opened.text(rows)


def test_every_class_has_a_meaning_and_a_style():
    from pipelines.report import _TEMPLATES

    style = (_TEMPLATES / "style.css").read_text()
    assert set(CLASS_MEANINGS) == set(TokenClass)
    for kind in TokenClass:
        assert f".{kind.name.lower()} {{" in style

"""Tokens as text that can be shown, on a page or in a terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from shared.showing.token_text import pieces, visible, visible_alone


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a↵b"), ("\t", "⇥"), ("\x00", "\\x00"), (" café", " café"), ("\u202e", "\\u202e"),
     ("\x1b[31m", "\\x1b[31m"), ("🤷\u200d♀", "🤷\u200d♀")],
)
def test_what_would_not_be_seen_gets_a_sign(text, shown):
    assert visible(text) == shown


def test_a_kept_newline_stands_behind_its_sign():
    assert visible("a\n", line_breaks=True) == "a↵\n"


@pytest.mark.parametrize(
    ("text", "shown"), [("\u200d", "\\u200d"), ("\ufe0f", "\\ufe0f"), ("a\u200d", "a\u200d"), ("", "")]
)
def test_a_token_that_has_no_width_gets_a_sign_in_a_terminal(text, shown):
    assert visible_alone(text) == shown


@given(st.text(), st.booleans())
def test_no_text_reaches_a_terminal_as_an_escape_sequence_or_turns_its_direction(text, line_breaks):
    kinds = {char: unicodedata.category(char) for char in visible(text, line_breaks)}
    assert not {char for char, kind in kinds.items() if kind in {"Cc", "Cf", "Zl", "Zp", "Cs"}} - set("\n\u200c\u200d")
    assert line_breaks or "\n" not in kinds


def test_a_word_keeps_the_space_that_it_begins_with():
    """The decoder of Llama-2 and Mistral, which takes away a space at the beginning of a text."""
    words = ["<s>", "▁hello", "▁there", "<0xC3>", "<0xA9>", "▁", "x"]
    decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    found = pieces(range(len(words)), lambda ids: decoder.decode([words[number] for number in ids]))
    assert [piece.text for piece in found] == ["<s>", " hello", " there", "é", " ", "x"]


@given(st.text(min_size=1, max_size=20))
def test_bytes_that_make_one_character_are_one_piece(text):
    data = text.encode("utf-8", "replace")
    found = pieces(list(data), lambda ids: bytes(ids).decode("utf-8", "replace"))
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == len(data)
    if "\ufffd" not in text:
        assert [piece.text for piece in found] == list(data.decode())

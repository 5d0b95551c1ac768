"""Tokens as pieces of text, and a conversation turn by turn."""

import numpy as np
import pytest

from pipelines.conversation_view import LONGEST, choose_conversation, show_conversation
from shared.format.tokens import TokenClass
from shared.showing.token_text import pieces


@pytest.fixture(scope="module")
def opened(demo):
    return demo.cache()


def test_pieces_cover_all_rows_and_join_the_tokens_of_one_character(opened):
    rows = np.arange(opened.num_train_rows, opened.num_rows)
    found = pieces(opened.token_id[rows].tolist(), opened.vocabulary.decode)
    assert [piece.start for piece in found] == [0, *(piece.stop for piece in found[:-1])]
    assert found[-1].stop == len(rows)
    text = "".join(piece.text for piece in found)
    assert text == opened.text(rows)
    assert "\N{SHRUG}" in text
    assert any(piece.stop - piece.start > 1 for piece in found)


def test_a_held_out_conversation_is_shown_with_all_its_classes(opened):
    number = choose_conversation(opened)
    start, stop = opened.conversation_offset[number : number + 2]
    assert start >= opened.num_train_rows
    shown = show_conversation(opened, number)
    assert shown.num_shown == min(LONGEST, stop - start)
    rows = np.arange(start, start + shown.num_shown)
    assert [turn.role for turn in shown.turns[:2]] == ["system", "user"]
    assert {entry.class_name for entry in shown.legend} == {
        TokenClass(kind).name.lower() for kind in opened.token_class[rows]}
    assert sum(entry.num_tokens for entry in shown.legend) == shown.num_shown
    text = "".join(token.text for turn in shown.turns for token in turn.tokens)
    assert text.replace("↵\n", "\n").replace("↵", "\n") == opened.text(rows)

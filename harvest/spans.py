"""Which characters of a rendered conversation the template put there, and what each piece is.

Templates differ (ChatML, Llama-3, Gemma, Mistral...), but all write control tokens, role names, white
space and text around the messages' contents. Given where the contents lie, one walk over the rendered
text says of every character what it is and whose turn it stands in. Templates write the same few texts between
contents over and over, so what the walk made of one is kept.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shared.format.tokens import CONTENT_CLASSES, Role, TokenClass

ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    "gpt": Role.ASSISTANT,
}
"""Role names as conversations and templates spell them; every other name is `Role.OTHER`."""

_CONTENT_CLASS = {
    Role.SYSTEM: TokenClass.SYSTEM,
    Role.USER: TokenClass.USER,
    Role.ASSISTANT: TokenClass.ASSISTANT,
    Role.OTHER: TokenClass.OTHER_ROLE,
}

_USUAL = frozenset({*ROLES, "tool", "ipython"})
"""Role names that are known whatever the conversation."""

_KEPT, _LONGEST_KEPT = 4096, 4096
"""Template texts that are kept at most, and characters of one: contents may make a template write others."""


class Span(NamedTuple):
    """A piece of template text of one kind."""

    length: int
    token_class: int
    role: int
    turn: int
    is_control: bool


@dataclass(frozen=True)
class Spans:
    """The pieces of a rendered conversation, each of one kind; every array has one entry a piece."""

    edge: npt.NDArray[np.int64]
    """Where each begins, and the text's length: one entry more. They cover the text without gaps."""
    token_class: npt.NDArray[np.int64]
    role: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int64]
    is_control: npt.NDArray[np.bool_]
    """Whether it is a control token that the template wrote."""

    def __len__(self) -> int:
        return len(self.token_class)

    def of_chars(self) -> npt.NDArray[np.int64]:
        """The number of the span of every character."""
        return np.repeat(np.arange(len(self)), np.diff(self.edge))

    def of_class(self, token_class: TokenClass) -> list[tuple[int, int]]:
        """Start and stop of the spans of one class."""
        return [(int(self.edge[number]), int(self.edge[number + 1]))
                for number in np.flatnonzero(self.token_class == token_class)]


@dataclass(frozen=True)
class Content:
    """Where one message's content stands in the rendered text."""

    start: int
    stop: int
    role: str


class _State(NamedTuple):
    """Where a walk stands between two pieces of text. Turns are counted from -1 on: none has begun."""

    turn: int = -1
    role: Role = Role.NONE
    is_open: bool = False
    had_content: bool = False
    in_header: bool = False


def role_of(name: str) -> Role:
    """The `Role` of a role's name."""
    return ROLES.get(name, Role.OTHER)


class SpanFinder:
    """Cuts rendered conversations into spans.

    Args:
        control: matches the tokenizer's control tokens.
        bos: the beginning-of-sequence token, if there is one.
        default_system: the text of the template's own system prompt; "" if it has none.
    """

    def __init__(self, control: re.Pattern[str], bos: str | None, default_system: str) -> None:
        self._control = control
        self._bos = bos
        self._default_system = default_system
        self._words: dict[frozenset[str], re.Pattern[str]] = {}
        self._known: dict[tuple[object, ...], tuple[list[Span], _State]] = {}

    def find(self, text: str, contents: Sequence[Content]) -> Spans:
        """The spans of a rendered conversation.

        Args:
            text: the rendered conversation.
            contents: its messages' contents, in order.
        """
        names = frozenset(content.role for content in contents) - _USUAL
        spans: list[tuple[int, ...]] = []
        turns_before: list[int] = []
        state = _State()
        position = 0
        for content in contents:
            role = role_of(content.role)
            state = self._template(text[position : content.start], state, role, names, spans, turns_before)
            state = self._content(text, content, role, state, spans, turns_before)
            position = content.stop
        self._template(text[position:], state, None, names, spans, turns_before)
        columns = np.array(spans, np.int64).reshape(-1, len(Span._fields)).T
        return Spans(
            edge=np.concatenate([[0], np.cumsum(columns[0])]),
            token_class=columns[1],
            role=columns[2],
            turn=columns[3] + np.array(turns_before, np.int64),
            is_control=columns[4].astype(bool),
        )

    def _content(
        self, text: str, content: Content, role: Role, state: _State, spans: list[tuple[int, ...]],
        turns_before: list[int],
    ) -> _State:
        """A message's text; what is spelled like a control token in it is `ESCAPED`."""
        turn = state.turn if state.is_open else state.turn + 1
        position = content.start
        for match in self._control.finditer(text, content.start, content.stop):
            if position < match.start():
                spans.append((match.start() - position, _CONTENT_CLASS[role], role, 0, False))
                turns_before.append(turn)
            spans.append((match.end() - match.start(), TokenClass.ESCAPED, role, 0, False))
            turns_before.append(turn)
            position = match.end()
        if position < content.stop:
            spans.append((content.stop - position, _CONTENT_CLASS[role], role, 0, False))
            turns_before.append(turn)
        return _State(turn, role, True, True, False)

    def _template(
        self, text: str, state: _State, next_role: Role | None, names: frozenset[str], spans: list[tuple[int, ...]],
        turns_before: list[int],
    ) -> _State:
        """What the template wrote before a content of ``next_role``, or at the end."""
        if not text:
            return state
        before = max(state.turn, 0)  # a walk counts turns from 0 on, or from -1 where none has begun
        begun = state._replace(turn=0) if state.turn > 0 else state
        key = (text, begun, next_role, names)
        known = self._known.get(key)
        if known is None:
            walk = _Walk(text, self._control, self._bos, self._default_system, self._word(names), begun)
            walk.template(next_role)
            known = (walk.spans, walk.state())
            if len(self._known) < _KEPT and len(text) <= _LONGEST_KEPT:
                self._known[key] = known
        spans += known[0]
        turns_before += [before] * len(known[0])
        return known[1]._replace(turn=known[1].turn + before) if before else known[1]

    def _word(self, names: frozenset[str]) -> re.Pattern[str]:
        """Matches a role's name: the usual ones, and those of the conversation."""
        if names not in self._words:
            words = sorted(_USUAL | names, key=len, reverse=True)
            pattern = re.compile("|".join(map(re.escape, words)))
            if len(self._words) >= _KEPT:
                return pattern
            self._words[names] = pattern
        return self._words[names]


class _Walk:
    """The walk over one piece of template text, and the turn that it is in."""

    def __init__(
        self, text: str, control: re.Pattern[str], bos: str | None, default_system: str, word: re.Pattern[str],
        state: _State,
    ) -> None:
        self.spans: list[Span] = []
        self._text = text
        self._control = control
        self._bos = bos
        self._default_system = default_system
        self._role_word = word
        self._turn, self._role, self._open, self._had_content, self._in_header = state

    def state(self) -> _State:
        """Where the walk stands now."""
        return _State(self._turn, self._role, self._open, self._had_content, self._in_header)

    def template(self, next_role: Role | None) -> None:
        """Walk over the text; ``next_role`` is the role of the content that follows it."""
        position, stop = 0, len(self._text)
        for match in self._control.finditer(self._text):
            self._plain(position, match.start(), next_role)
            self._control_token(match, stop, next_role)
            position = match.end()
        self._plain(position, stop, next_role)

    def _control_token(self, match: re.Match[str], stop: int, next_role: Role | None) -> None:
        """A control token: header's end, turn's end, turn's start or separator, by what stands around it."""
        named = self._named(match.end(), stop)
        if named:
            leads_to_content = next_role is not None and self._frames_next(named.end(), stop)
            self._start_turn(next_role if next_role is not None and leads_to_content else role_of(named[0]))
            self._in_header = True
            self._add(match.start(), match.end(), TokenClass.TURN_START, is_control=True)
        elif self._in_header:
            self._in_header = False
            self._add(match.start(), match.end(), TokenClass.HEADER_END, is_control=True)
        elif self._open:
            self._add(match.start(), match.end(), TokenClass.TURN_END, is_control=True)
            self._open = False
        elif match[0] == self._bos:
            # It frames the turn that follows, which has not begun yet.
            self._add(match.start(), match.end(), TokenClass.BOS, is_control=True)
        else:
            self._start_turn(next_role if next_role is not None else Role.NONE)
            self._add(match.start(), match.end(), TokenClass.TURN_START, is_control=True)

    def _named(self, position: int, stop: int) -> re.Match[str] | None:
        """A role's name at ``position``: a known word before white space, a control token or the content."""
        word = self._role_word.match(self._text, position, stop)
        if word is None:
            return None
        end = word.end()
        if end == stop or self._text[end].isspace() or self._control.match(self._text, end, stop):
            return word
        return None

    def _frames_next(self, position: int, stop: int) -> bool:
        """Whether the header at ``position`` leads to the content at ``stop``: no other turn opens between."""
        controls = self._control.finditer(self._text, position, stop)
        return not any(self._named(match.end(), stop) for match in controls)

    def _plain(self, start: int, stop: int, next_role: Role | None) -> None:
        """Template text without control tokens: a role's name, white space, a system prompt, a date line."""
        if start == stop:
            return
        if self._in_header and (word := self._named(start, stop)):
            self._add(start, word.end(), TokenClass.ROLE_NAME)
            start = word.end()
            if start < stop:
                self._in_header = False  # ChatML: a newline ends the header
        text = self._text[start:stop]
        if self._default_system and (at := text.find(self._default_system)) >= 0:
            end = at + len(self._default_system)
            self._space_or_other(start, start + at)
            self._add(start + at, start + end, TokenClass.DEFAULT_SYSTEM)
            self._space_or_other(start + end, stop)
            return
        if text.strip() and self._open and self._had_content and next_role is not None:
            self._start_turn(next_role)  # a template without control tokens: "### Answer:" opens the next turn
        self._space_or_other(start, stop)

    def _space_or_other(self, start: int, stop: int) -> None:
        """White space at either end of template text is a class of its own."""
        text = self._text[start:stop]
        lead = len(text) - len(text.lstrip()) if text.strip() else len(text)
        trail = len(text.rstrip()) if text.strip() else len(text)
        self._add(start, start + lead, TokenClass.TEMPLATE_SPACE)
        self._add(start + lead, start + trail, TokenClass.TEMPLATE_OTHER)
        self._add(start + trail, stop, TokenClass.TEMPLATE_SPACE)

    def _start_turn(self, role: Role) -> None:
        self._turn += 1
        self._role = role
        self._open, self._had_content, self._in_header = True, False, False

    def _add(self, start: int, stop: int, token_class: TokenClass, is_control: bool = False) -> None:
        if start < stop:
            span = Span(stop - start, int(token_class), int(self._role), max(self._turn, 0), is_control)
            self.spans.append(span)


def without_default_turn(text: str, spans: Spans) -> tuple[str, Spans] | None:
    """A rendered conversation without the system turn that the template put there of itself.

    That turn goes from the control token that opens it to the one that opens the next turn. Text and spans are as
    they are where no default system prompt is in them.

    Returns:
        The text and its spans; None where the default system prompt is not a turn of its own: no control token opens
        it or the next turn, or something else is said in it.
    """
    found = np.flatnonzero(spans.token_class == TokenClass.DEFAULT_SYSTEM)
    if not len(found):
        return text, spans
    is_turn = (spans.turn == spans.turn[found[0]]) & (spans.role == spans.role[found[0]])
    start, stop = int(np.argmax(is_turn)), len(spans) - int(np.argmax(is_turn[::-1]))
    said = {*spans.token_class[start:stop].tolist()} & {*CONTENT_CLASSES, TokenClass.TEMPLATE_OTHER}
    opens = [number < len(spans) and spans.token_class[number] == TokenClass.TURN_START for number in (start, stop)]
    if said or not all(opens):
        return None
    first, last = int(spans.edge[start]), int(spans.edge[stop])

    def kept(column: npt.NDArray[Any], cut: int) -> npt.NDArray[Any]:
        return np.concatenate([column[:start], column[stop:] - column.dtype.type(cut)])

    return text[:first] + text[last:], Spans(
        edge=kept(spans.edge, last - first),
        token_class=kept(spans.token_class, 0),
        role=kept(spans.role, 0),
        turn=kept(spans.turn, 1),
        is_control=np.concatenate([spans.is_control[:start], spans.is_control[stop:]]),
    )

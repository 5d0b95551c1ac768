"""Which characters of a rendered conversation the template put there, and what each piece is.

Templates differ (ChatML, Llama-3, Gemma, Mistral...), but all write control tokens, role names, white
space and text around the messages' contents. Given where the contents lie, one walk over the rendered
text says of every character what it is and whose turn it stands in. Templates write the same few texts between
contents over and over, so what the walk made of one is kept.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
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

    length: npt.NDArray[np.int64]
    """Characters of each. They cover the text without gaps."""
    token_class: npt.NDArray[np.int64]
    role: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int64]
    is_control: npt.NDArray[np.bool_]
    """Whether it is a control token that the template wrote."""

    def __len__(self) -> int:
        return len(self.token_class)

    def of_chars(self) -> npt.NDArray[np.int64]:
        """The number of the span of every character."""
        return np.arange(len(self)).repeat(self.length)

    def of_class(self, token_class: TokenClass) -> list[tuple[int, int]]:
        """Start and stop of the spans of one class."""
        stop = self.length.cumsum()
        return [(int(stop[number] - self.length[number]), int(stop[number]))
                for number in np.flatnonzero(self.token_class == token_class)]


@dataclass(frozen=True)
class Content:
    """Where one message's content stands in the rendered text."""

    start: int
    stop: int
    role: str


class _State(NamedTuple):
    """Where a walk stands between two pieces of text.

    Turns are counted from the one that a piece begins in, which is 0; -1 says that none has begun.
    """

    turn: int = -1
    role: Role = Role.NONE
    is_open: bool = False
    had_content: bool = False
    in_header: bool = False


_IN_CONTENT = {role: _State(0, role, True, True, False) for role in Role}
"""After a content of a role."""


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
        self._known: dict[tuple[object, ...], tuple[list[Span], _State, int]] = {}

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
        turn = position = 0
        for content in contents:
            role = role_of(content.role)
            if position < content.start:
                known, state, more = self._template(text[position : content.start], state, role, names)
                spans += known
                turns_before += [turn] * len(known)
                turn += more
            turn += not state.is_open and state.turn == 0
            state = _IN_CONTENT[role]
            before = len(spans)
            self._content(text, content, role, spans)
            turns_before += [turn] * (len(spans) - before)
            position = content.stop
        if position < len(text):
            known, _, _ = self._template(text[position:], state, None, names)
            spans += known
            turns_before += [turn] * len(known)
        width = len(Span._fields)
        columns = np.fromiter(chain.from_iterable(spans), np.int64, width * len(spans)).reshape(-1, width).T
        return Spans(
            length=columns[0],
            token_class=columns[1],
            role=columns[2],
            turn=columns[3] + np.array(turns_before, np.int64),
            is_control=columns[4].astype(bool),
        )

    def _content(self, text: str, content: Content, role: Role, spans: list[tuple[int, ...]]) -> None:
        """A message's text; what is spelled like a control token in it is `ESCAPED`."""
        token_class = _CONTENT_CLASS[role]
        position = content.start
        for match in self._control.finditer(text, content.start, content.stop):
            if position < match.start():
                spans.append((match.start() - position, token_class, role, 0, False))
            spans.append((match.end() - match.start(), TokenClass.ESCAPED, role, 0, False))
            position = match.end()
        if position < content.stop:
            spans.append((content.stop - position, token_class, role, 0, False))

    def _template(
        self, text: str, state: _State, next_role: Role | None, names: frozenset[str]
    ) -> tuple[list[Span], _State, int]:
        """What the template wrote before a content of ``next_role``, or at the end.

        Returns:
            Its spans, the state after it, and how many turns further that is.
        """
        key = (text, state, next_role, names)
        known = self._known.get(key)
        if known is None:
            walk = _Walk(text, self._control, self._bos, self._default_system, self._word(names), state)
            walk.template(next_role)
            after = walk.state()
            known = (walk.spans, after._replace(turn=min(after.turn, 0)), max(after.turn, 0))
            if len(self._known) < _KEPT and len(text) <= _LONGEST_KEPT:
                self._known[key] = known
        return known

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
    first, last = int(spans.length[:start].sum()), int(spans.length[:stop].sum())

    def kept(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([column[:start], column[stop:]])

    return text[:first] + text[last:], Spans(
        length=kept(spans.length),
        token_class=kept(spans.token_class),
        role=kept(spans.role),
        turn=np.concatenate([spans.turn[:start], spans.turn[stop:] - 1]),
        is_control=kept(spans.is_control),
    )

"""Which characters of a rendered conversation the template put there, and what each piece is.

Templates differ (ChatML, Llama-3, Gemma, Mistral...), but all write control tokens, role names, white
space and text around the messages' contents. Given where the contents lie, one walk over the rendered
text says of every character what it is and whose turn it stands in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shared.format.tokens import Role, TokenClass

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


@dataclass
class Span:
    """A piece of rendered text of one kind."""

    start: int
    stop: int
    token_class: TokenClass
    role: Role = Role.NONE
    turn: int = 0
    is_content: bool = False
    is_control: bool = False


@dataclass(frozen=True)
class Content:
    """Where one message's content stands in the rendered text."""

    start: int
    stop: int
    role: str


def role_of(name: str) -> Role:
    """The `Role` of a role's name."""
    return ROLES.get(name, Role.OTHER)


def find_spans(
    text: str, contents: Sequence[Content], control: re.Pattern[str], bos: str | None, default_system: str
) -> list[Span]:
    """Cut a rendered conversation into spans that cover it without gaps.

    Args:
        text: the rendered conversation.
        contents: its messages' contents, in order.
        control: matches the tokenizer's control tokens.
        bos: the beginning-of-sequence token, if there is one.
        default_system: the text of the template's own system prompt; "" if it has none.
    """
    walk = _Walk(text, control, bos, default_system, {content.role for content in contents})
    position = 0
    for content in contents:
        walk.template(position, content.start, role_of(content.role))
        walk.content(content, control)
        position = content.stop
    walk.template(position, len(text), None)
    return walk.spans


class _Walk:
    """The walk's state: the turn we are in, and whether its content has been seen."""

    def __init__(
        self, text: str, control: re.Pattern[str], bos: str | None, default_system: str, names: set[str]
    ) -> None:
        self.spans: list[Span] = []
        self._text = text
        self._control = control
        self._bos = bos
        self._default_system = default_system
        words = sorted({*ROLES, "tool", "ipython", *names}, key=len, reverse=True)
        self._role_word = re.compile("|".join(map(re.escape, words)))
        self._turn = -1
        self._role = Role.NONE
        self._open = False
        self._had_content = False
        self._in_header = False

    def content(self, content: Content, control: re.Pattern[str]) -> None:
        """A message's text; what is spelled like a control token in it is `ESCAPED`."""
        role = role_of(content.role)
        if not self._open:
            self._start_turn(role)
        self._role, self._had_content, self._in_header = role, True, False
        position = content.start
        for match in control.finditer(self._text, content.start, content.stop):
            self._add(position, match.start(), _CONTENT_CLASS[role], is_content=True)
            self._add(match.start(), match.end(), TokenClass.ESCAPED, is_content=True)
            position = match.end()
        self._add(position, content.stop, _CONTENT_CLASS[role], is_content=True)

    def template(self, start: int, stop: int, next_role: Role | None) -> None:
        """What the template wrote between two contents; ``next_role`` is the role of the one that follows."""
        position = start
        for match in self._control.finditer(self._text, start, stop):
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
        if end == stop or self._text[end].isspace() or self._control.match(self._text, end):
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

    def _add(
        self, start: int, stop: int, token_class: TokenClass, is_content: bool = False, is_control: bool = False
    ) -> None:
        if start < stop:
            turn = max(self._turn, 0)
            self.spans.append(Span(start, stop, token_class, self._role, turn, is_content, is_control))

"""One typed model of a conversation, and how a raw row becomes one or is skipped with a reason."""

from collections.abc import Collection, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Literal

import xxhash

from harvest.layouts import LAYOUTS, MEDIA_COLUMNS, TEXT, TOOL_COLUMNS, messages_of
from shared.digests import canonical_json

_TEXT = ""
"""Role of plain text, which has no turns; no message of a chat has it."""

ROLES = ("system", "user", "assistant")
"""Roles that a conversation may have, unless the recipe says otherwise."""

Reason = Literal[
    "not_an_object", "not_json", "too_long", "no_messages", "bad_message", "bad_role", "unknown_role", "bad_content",
    "bad_unicode", "has_tools", "has_media", "control_token", "private_use", "template_error", "template_rewrites",
    "no_tokens", "duplicate", "other_side",
]
"""Why a row is skipped: all codes there are. docs/errors.md says what each means."""

_LONGEST_DETAIL = 300
"""Characters of a detail at most: what is quoted from a row may be of any length, and many rows may be skipped."""


@dataclass(frozen=True)
class Message:
    """One turn's role and text."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """A valid conversation."""

    messages: tuple[Message, ...]
    place: str
    """Where it was read, for messages about it: "my.jsonl:17"."""
    source: int = 0
    """Number of its data set in a mixture."""

    @classmethod
    def of_text(cls, text: str, place: str) -> "Conversation":
        """Plain text, for block training: it goes through no chat template."""
        return cls((Message(_TEXT, text),), place)

    @property
    def is_text(self) -> bool:
        """Whether it is plain text."""
        return self.messages[0].role == _TEXT

    @property
    def key(self) -> int:
        """xxh3-64 of roles and contents: equal conversations have equal keys, in every data set."""
        pairs = [[message.role, message.content] for message in self.messages]
        return xxhash.xxh3_64_intdigest(canonical_json(pairs))

    def as_dicts(self) -> list[dict[str, str]]:
        """What a chat template takes."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass(frozen=True)
class Skipped:
    """A row that is no conversation we can harvest."""

    place: str
    reason: Reason
    """The code that is counted."""
    detail: str = ""

    def __post_init__(self) -> None:
        if len(self.detail) > _LONGEST_DETAIL:
            object.__setattr__(self, "detail", self.detail[:_LONGEST_DETAIL] + "...")


def parse_row(
    row: object, place: str, layout: str = "messages", roles: Collection[str] | None = None
) -> Conversation | Skipped:
    """A row as a conversation, or why it is none.

    A row that needs more than text is skipped whole: with tools ("has_tools"), with pictures or sound
    ("has_media"), with a role that is not asked for ("unknown_role"). To leave those parts out would make another
    conversation of it.

    Args:
        layout: of `harvest.layouts.LAYOUTS`.
        roles: those a conversation may have; None for any.
    """
    if not isinstance(row, Mapping):
        return Skipped(place, "not_an_object", f"expected an object with messages; got {type(row).__name__}")
    if layout == TEXT:
        problem = _problem_of_text(row.get("text"))
        return Skipped(place, *problem) if problem else Conversation.of_text(row["text"], place)
    try:
        messages = messages_of(row, layout)
    except (ValueError, RecursionError) as error:
        return Skipped(place, "not_json", f"messages: {str(error)[:200]}")
    if not isinstance(messages, list) or not messages:
        wanted = " and ".join(LAYOUTS[layout].columns)
        return Skipped(place, "no_messages", f"{wanted} must be a list that is not empty; keys: {list(row)[:8]}")
    if more := _more_than_text(row):
        return Skipped(place, more[0], f"the row has {more[1]}")
    parsed = []
    for number, message in enumerate(messages):
        problem = _problem(message, roles)
        if problem:
            return Skipped(place, problem[0], f"message {number}: {problem[1]}")
        parsed.append(Message(message["role"], message["content"]))
    return Conversation(tuple(parsed), place)


def _more_than_text(row: Mapping[Any, Any]) -> tuple[Reason, str] | None:
    """The tools, pictures or sound of a row or message, as a reason and the key that holds them."""
    wanted: tuple[tuple[Reason, tuple[str, ...]], ...] = (("has_tools", TOOL_COLUMNS), ("has_media", MEDIA_COLUMNS))
    for reason, keys in wanted:
        for key in keys:
            if _is_set(row.get(key)):
                return reason, key
    return None


def _problem(message: Any, roles: Collection[str] | None) -> tuple[Reason, str] | None:
    if not isinstance(message, Mapping):
        return "bad_message", f"expected an object; got {type(message).__name__}"
    if more := _more_than_text(message):
        return more[0], f"it has {more[1]}"
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role or not role.replace("_", "").isalnum():
        return "bad_role", f"expected a role like 'user'; got {str(role)[:80]!r}"
    if roles is not None and role not in roles:
        return "unknown_role", f"expected one of {', '.join(roles)}; got {role[:80]!r}"
    if isinstance(content, list) and any(_is_media(part) for part in content):
        return "has_media", "its content has parts that are no text"
    return _problem_of_text(content)


def _problem_of_text(content: Any) -> tuple[Reason, str] | None:
    if not isinstance(content, str):
        return "bad_content", f"expected a string; got {type(content).__name__}"
    try:
        content.encode()
    except UnicodeEncodeError:
        return "bad_unicode", "the content has a lone surrogate"
    return None


def _is_set(value: object) -> bool:
    """Whether a column or key says anything: data sets fill what they have not with null, [] or "[]"."""
    if isinstance(value, str):
        return value not in {"", "[]", "{}", "null"}
    return value is not None and not (isinstance(value, Sized) and len(value) == 0)


def _is_media(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") not in {None, "text"}

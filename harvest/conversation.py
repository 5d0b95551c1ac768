"""One typed model of a conversation, and how a raw row becomes one or is skipped with a reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from shared.digests import canonical_json


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
    reason: str
    """A code that is counted: "no_messages", "bad_role", "bad_content", ..."""
    detail: str = ""


def parse_row(row: object, place: str) -> Conversation | Skipped:
    """A row with ``messages``, a list of ``{"role": str, "content": str}``, as a conversation."""
    if not isinstance(row, Mapping):
        return Skipped(place, "not_an_object", f"expected an object with messages; got {type(row).__name__}")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        return Skipped(place, "no_messages", f"messages must be a list that is not empty; keys: {list(row)[:8]}")
    parsed = []
    for number, message in enumerate(messages):
        problem = _problem(message)
        if problem:
            return Skipped(place, problem[0], f"message {number}: {problem[1]}")
        parsed.append(Message(message["role"], message["content"]))
    return Conversation(tuple(parsed), place)


def _problem(message: Any) -> tuple[str, str] | None:
    if not isinstance(message, Mapping):
        return "bad_message", f"expected an object; got {type(message).__name__}"
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role or not role.replace("_", "").isalnum():
        return "bad_role", f"expected a role like 'user'; got {role!r}"
    if not isinstance(content, str):
        return "bad_content", f"expected a string; got {type(content).__name__}"
    try:
        content.encode()
    except UnicodeEncodeError:
        return "bad_unicode", "the content has a lone surrogate"
    return None

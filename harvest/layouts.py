"""How the rows of a data set hold their conversations: which columns, and what they call roles and text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT = "text"
"""The layout that holds no conversation but plain text."""

ROLES_OF_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
"""Roles by what from/value rows call them. Any other speaker is taken for a role of that name."""


@dataclass(frozen=True)
class Layout:
    """The columns of a row that hold its conversation."""

    columns: tuple[str, ...]
    example: str
    """A row, for messages."""


LAYOUTS: dict[str, Layout] = {
    "messages": Layout(("messages",), '{"messages": [{"role": "user", "content": "..."}, ...]}'),
    "messages-json": Layout(("messages",), '{"messages": "[{\\"role\\": \\"user\\", ...}]"}'),
    "conversations": Layout(("conversations",), '{"conversations": [{"from": "human", "value": "..."}, ...]}'),
    "conversation": Layout(("conversation",), '{"conversation": [{"role": "user", "content": "..."}, ...]}'),
    "prompt-response": Layout(("prompt", "response"), '{"prompt": "...", "response": "..."}'),
    TEXT: Layout(("text",), '{"text": "..."}'),
}
"""By name, in the order in which they are looked for."""

TOOL_COLUMNS = ("tools", "functions", "tool_calls", "function_call")
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")

COLUMNS = frozenset({*TOOL_COLUMNS, *MEDIA_COLUMNS, *(name for one in LAYOUTS.values() for name in one.columns)})
"""All columns that anything is made of: others need not be read."""


def detect_layout(row: object) -> str | None:
    """The layout of a row by its columns and what they hold, or None where it fits none."""
    if not isinstance(row, Mapping):
        return None
    messages = row.get("messages")
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        return "messages-json"
    for name in ("messages", "conversations", "conversation"):
        column = row.get(name)
        if isinstance(column, list) and column and all(isinstance(message, Mapping) for message in column):
            return name
    for name in ("prompt-response", TEXT):
        if all(isinstance(row.get(column), str) for column in LAYOUTS[name].columns):
            return name
    return None


def messages_of(row: Mapping[str, Any], layout: str) -> object:
    """What a row holds as its messages, each with ``role`` and ``content``; not validated.

    Raises:
        ValueError, RecursionError: JSON that is none.
    """
    if layout == "prompt-response":
        if not {"prompt", "response"} <= row.keys():
            return None
        return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    value = row.get(LAYOUTS[layout].columns[0])
    if layout == "messages-json":
        return json.loads(value) if isinstance(value, str) else None
    if layout in {"conversations", "conversation"} and isinstance(value, list):
        return [_with_role(message) for message in value]
    return value


def _with_role(message: object) -> object:
    """A from/value message with role and content; one that has them already is left as it is."""
    if not isinstance(message, Mapping) or "role" in message or "from" not in message:
        return message
    speaker = message["from"]
    role = ROLES_OF_SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {**message, "role": role, "content": message.get("value")}

"""What differs between two configurations, for people: field by field, in two columns."""

from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH = 44
"""Characters of a value that are shown."""

_NOT_SET = "(not set)"


@dataclass(frozen=True)
class Difference:
    """A field that two configurations do not agree on."""

    field: str
    """Its dotted name: "template_variables.date_string"."""
    old: object
    new: object


def differences(old: object, new: object, prefix: str = "") -> list[Difference]:
    """The fields of two nested dictionaries that differ, by name. A field that one lacks is None there."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new}):
            found += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return [] if old == new else [Difference(prefix, old, new)]


def two_columns(found: Sequence[Difference], old: str = "there", new: str = "asked") -> list[str]:
    """Lines of a table: the fields, and both values of each, under the headings ``old`` and ``new``."""
    rows = [("", old, new), *((one.field, *_shown(one.old, one.new)) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"  {field:{widths[0]}}  {left:{widths[1]}}  {right}" for field, left, right in rows]


def _shown(old: object, new: object) -> tuple[str, str]:
    """Both values as text; of long ones the part where they begin to differ."""
    texts = [_text(old), _text(new)]
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, same - _WIDTH // 2) if same > _WIDTH // 2 and max(map(len, texts)) > _WIDTH else 0
    left, right = (_cut(text, start) for text in texts)
    return left, right


def _cut(text: str, start: int) -> str:
    head = "..." if start else ""
    tail = "..." if len(text) > start + _WIDTH else ""
    return head + text[start : start + _WIDTH] + tail


def _text(value: object) -> str:
    if value is None or value == {}:
        return _NOT_SET
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return " ".join(map(str, value))
    if isinstance(value, str) and value and value.isprintable() and value == value.strip():
        return value
    return repr(value)

"""Parsing JSON that anybody may have written: its size, the number of its values and its nesting are bounded.

A few bytes of JSON can take a hundred times their size in memory: an empty list is two bytes in a file. So the
signs that make values are counted before anything is parsed.
"""

import json
from typing import Any


def parse_json(data: bytes, max_values: int, max_containers: int, max_nesting: int) -> Any:
    """The value of a JSON text in UTF-8.

    Args:
        max_values: commas; a value or two stands for each, of 8 to 150 bytes.
        max_containers: brackets, each of a list or an object of 64 bytes or more. Signs in strings count too,
            which does no harm.
        max_nesting: lists and objects inside each other.

    Raises:
        ValueError: it is no JSON, has a key twice, or is beyond one of the bounds.
    """
    if data.count(b",") > max_values or data.count(b"[") + data.count(b"{") > max_containers:
        raise ValueError(f"it holds more than {max_values:,} values or {max_containers:,} lists and objects")
    try:
        value = json.loads(data, object_pairs_hook=_without_repeats)
    except (RecursionError, MemoryError):
        raise ValueError("it is nested too deep or too large") from None
    if _is_deep(value, max_nesting):
        raise ValueError(f"it is nested more than {max_nesting} deep")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are there once: of two, one reader takes the first and another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _is_deep(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deep(item, levels - 1) for item in inner if isinstance(item, dict | list))

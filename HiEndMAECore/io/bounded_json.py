"""JSON from files of unknown origin: limited in size and nesting. Standard library only."""

from __future__ import annotations

import json
import re
from typing import Any

MAX_BYTES = 10_000_000  # descriptions of models and data sets are text of some kilobytes
MAX_DEPTH = 50  # of objects and lists in each other
_BRACKET = re.compile(r"[\[\]{}]")


def parse_json_object(content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        content: UTF-8 text, with or without a byte order mark.

    Raises:
        ValueError: The content is too large, nested too deeply, or no JSON object; the message is a sentence part.
    """
    if len(content) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
        is_deep = _is_deep(text)
        data = None if is_deep else json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error
    if is_deep:
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
    if not isinstance(data, dict):
        raise ValueError("is not a JSON object")
    return data


def _is_deep(text: str) -> bool:
    """Return whether objects and lists are nested so deeply that the parser's recursion could end the process."""
    without_escapes = text.replace("\\\\", "").replace('\\"', "")
    outside_texts = " ".join(without_escapes.split('"')[::2])
    depth = 0
    for match in _BRACKET.finditer(outside_texts):
        depth += 1 if match.group() in "[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False

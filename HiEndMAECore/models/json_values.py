"""Checks of single values of a parsed JSON file. Only the standard library is needed."""

from __future__ import annotations

import math
from typing import Any

MISSING = object()  # stands for the value of a key that the file does not have
_SHOWN_CHARACTERS = 80  # of a value in a message


class SchemaError(ValueError):
    """A value that does not follow the schema. The message names its key path, the value, and what it must be."""


def require(condition: bool, key: str, value: Any, requirement: str) -> None:
    """Raise a `SchemaError` that names the key path, the value and what it must be, unless the condition holds."""
    if not condition:
        found = "is missing" if value is MISSING else f"is {shown(value)}"
        raise SchemaError(f"'{key}' {found}, must be {requirement}")


def shown(value: Any) -> str:
    """Return a value as messages show it, shortened."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def is_list(value: Any, length: int) -> bool:
    """Return whether a JSON value is a list of this length."""
    return isinstance(value, list) and len(value) == length


def is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    """Return whether a JSON value is a whole number in a range; `true` and `1.0` are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether a JSON value is a number in a range that fits a float; NaN and infinity do not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value) and low <= value <= high
    except OverflowError:  # a whole number of more than 308 digits
        return False

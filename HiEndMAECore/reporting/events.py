"""The event protocol: one ASCII JSON object a line, from a run to the program that started it.

Each event has `"v": 1` and `"event"`. `KINDS` lists the fields that an event always has; it may have more. This module needs
the standard library alone, because the Slicer module reads events with `decode`.
"""

from __future__ import annotations

import json
import math
from typing import Any

VERSION = 1
KINDS: dict[str, tuple[str, ...]] = {
    "started": ("door", "version"),
    "progress": ("stage", "step", "total", "seconds_left"),
    "metric": ("name", "value"),
    "preview": ("path",),
    "warning": ("code", "message", "advice"),
    "failed": ("code", "message", "advice"),
    "finished": ("outputs",),
}


def encode(event: str, **fields: Any) -> str:
    """Return an event as one line of JSON, without the end of the line.

    Args:
        event: A key of `KINDS`.
        fields: The fields of the event. NaN and infinity become null; scalars of NumPy and torch become numbers.

    Raises:
        ValueError: The event is unknown or lacks a field.
    """
    if event not in KINDS:
        raise ValueError(f"unknown event {event!r}")
    missing = [name for name in KINDS[event] if name not in fields]
    if missing:
        raise ValueError(f"event {event!r} lacks {missing}")
    return json.dumps({"v": VERSION, "event": event, **_to_json(fields)}, ensure_ascii=True, default=str)


def decode(line: str) -> dict[str, Any] | None:
    """Return the event in a line, or None when the line is not an event of this version."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or event.get("v") != VERSION:
        return None
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in KINDS or any(name not in event for name in KINDS[kind]):
        return None
    return event


def _to_json(value: Any) -> Any:
    """Return a value as JSON can express it: null for NaN and infinity, numbers for scalars of NumPy and torch."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(part) for part in value]
    return value

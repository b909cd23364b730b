"""Events: what a run says to a program that watches it (DESIGN, "Events and control").

One ASCII JSON object a line on standard output, with `"v": 1` and `"event"` in each. `KINDS` lists the fields that
each event always has; more may be there. Standard library alone: the Slicer module reads events with `decode`.
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
    """One line of JSON without its line end. Raises `ValueError` for an unknown event or a missing field."""
    if event not in KINDS:
        raise ValueError(f"unknown event {event!r}")
    missing = [name for name in KINDS[event] if name not in fields]
    if missing:
        raise ValueError(f"event {event!r} lacks {missing}")
    return json.dumps({"v": VERSION, "event": event, **_finite(fields)}, ensure_ascii=True, default=str)


def decode(line: str) -> dict[str, Any] | None:
    """The event in `line`, or None when the line is no event of a version known here."""
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


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they travel as null. Scalars of numpy and torch travel as numbers."""
    if getattr(value, "shape", None) == ():
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value

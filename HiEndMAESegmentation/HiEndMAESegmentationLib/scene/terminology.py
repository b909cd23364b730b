"""Convert terminology entries between the one-line tag of a Slicer segment and the JSON that a model holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The parts of a tag in order. Those in _NAMES are plain text, the others are codes (scheme^value^meaning).
_PARTS = (
    "contextName",
    "category",
    "type",
    "typeModifier",
    "anatomicContextName",
    "anatomicRegion",
    "anatomicRegionModifier",
)
_NAMES = ("contextName", "anatomicContextName")
_CODE = ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")


def from_tag(tag: str) -> dict[str, Any]:
    """Return a tag `context~category~type~…` as JSON, or {} if it names no type."""
    entry: dict[str, Any] = {}
    for part, text in zip(_PARTS, tag.split("~")):
        if part in _NAMES:
            entry[part] = text
        elif text.strip("^"):
            entry[part] = dict(zip(_CODE, text.split("^")))
    return entry if entry.get("type") else {}


def to_tag(entry: Mapping[str, Any]) -> str:
    """Return the tag of a JSON entry, or "" if it names no type."""
    if not entry.get("type"):
        return ""
    texts = []
    for part in _PARTS:
        if part in _NAMES:
            texts.append(str(entry.get(part, "")))
        else:
            texts.append("^".join(str((entry.get(part) or {}).get(key, "")) for key in _CODE))
    return "~".join(texts)

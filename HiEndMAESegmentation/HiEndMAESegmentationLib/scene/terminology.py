"""Slicer's terminology entries: the one-line tag of a segment, and the plain JSON that a model carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The order of the parts in a tag; those in _NAMES are plain text, the others codes (scheme^value^meaning).
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
    """`context~category~type~…` as JSON; {} when the tag names no type."""
    entry: dict[str, Any] = {}
    for part, text in zip(_PARTS, tag.split("~")):
        if part in _NAMES:
            entry[part] = text
        elif text.strip("^"):
            entry[part] = dict(zip(_CODE, text.split("^")))
    return entry if entry.get("type") else {}


def to_tag(entry: Mapping[str, Any]) -> str:
    """The tag of a JSON entry; "" when it names no type."""
    if not entry.get("type"):
        return ""
    texts = []
    for part in _PARTS:
        if part in _NAMES:
            texts.append(str(entry.get(part, "")))
        else:
            texts.append("^".join(str(entry.get(part, {}).get(key, "")) for key in _CODE))
    return "~".join(texts)

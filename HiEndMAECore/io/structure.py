"""A labelled structure: value, name, color and terminology. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DEFAULT_COLOR = (128, 174, 128)  # 3D Slicer's color for tissue, where a file names none


@dataclass(frozen=True)
class Structure:
    """One labelled structure of a label map.

    Attributes:
        value: Its value in label maps, above 0.
        name: Its name, as a person reads it.
        color: Red, green and blue, 0 to 255 each.
        terminology: 3D Slicer's terminology entry as plain JSON, or empty.
    """

    value: int
    name: str
    color: tuple[int, int, int] = DEFAULT_COLOR
    terminology: dict[str, Any] = field(default_factory=dict)

"""What a scan is here: voxels, where they lie in the patient, and what is known of their origin.

World coordinates are RAS millimetres (NIfTI's convention) everywhere in the engine; files that speak LPS (DICOM, NRRD,
MHA) are turned on reading and turned back on writing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Structure:
    """One labelled structure: its value in label maps, name, colour (red, green, blue, 0 to 255) and terminology codes
    (Slicer's terminology entry as plain JSON, or empty)."""

    value: int
    name: str
    color: tuple[int, int, int] = (128, 174, 128)
    terminology: dict[str, Any] = field(default_factory=dict)

"""What a scan is here: voxels, where they lie in the patient, and what is known of their origin.

World coordinates are RAS millimetres (NIfTI's convention) everywhere in the engine; files that speak LPS (DICOM, NRRD,
MHA) are turned on reading and turned back on writing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """The grid of a scan.

    shape: voxels along the three stored axes (X, Y, Z).
    affine: (4, 4) float64, voxel index -> RAS mm; any orientation, obliqueness, anisotropy or shear.
    slice_origins: (Z, 3) float64 RAS mm or None. Where the slices of a DICOM series truly lie when they form no regular
        grid (gantry tilt, uneven gaps): the position of voxel (0, 0, k). `affine` then is the first slice's with the mean gap.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    slice_origins: np.ndarray | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in mm along the stored axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def matches(self, other: Geometry, tolerance: float = 1e-2) -> bool:
        """Same shape, and no corner voxel further apart than `tolerance` of the smallest voxel edge."""
        if self.shape != other.shape:
            return False
        last = np.array(self.shape) - 1
        corners = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
        apart = np.abs(corners @ (self.affine - other.affine).T)[:, :3].max()
        return bool(apart <= tolerance * min(self.spacing))


@dataclass(frozen=True)
class Volume:
    """A scan or a label map.

    array: (C, X, Y, Z); float32 for scans, an integer type for label maps (then C is 1).
    geometry: the grid.
    name: the case's name, as results will be called.
    source: the file or folder it was read from, if any.
    notes: what was corrected or doubted on reading, each {"code", "message", "advice"}, for the person to know.
    """

    array: np.ndarray
    geometry: Geometry
    name: str = ""
    source: Path | None = None
    notes: tuple[dict[str, str], ...] = field(default=())

    @property
    def channels(self) -> int:
        return int(self.array.shape[0])

    @property
    def affine(self) -> np.ndarray:
        return self.geometry.affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        return self.geometry.spacing

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.geometry.shape

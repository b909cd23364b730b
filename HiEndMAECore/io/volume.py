"""Scans and label maps in memory: voxels and the geometry of their grid.

World coordinates are RAS millimeters (the convention of NIfTI) everywhere in the engine. Formats that use LPS (DICOM, NRRD,
MetaImage) are converted on reading and converted back on writing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a scan.

    Two grids are compared by `matches`; `==` is identity, because arrays have no single truth value.

    Attributes:
        shape: Voxels along the three stored axes (X, Y, Z).
        affine: (4, 4) float64, from voxel index to RAS mm; any orientation, obliqueness, anisotropy or shear.
        slice_origins: (Z, 3) float64 in RAS mm, the position of voxel (0, 0, k) of each slice, for a DICOM series whose
            slices form no regular grid (gantry tilt, uneven gaps). `affine` then holds the first slice and the mean gap.
            None for a regular grid.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    slice_origins: np.ndarray | None = None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the voxel edge lengths in mm along the stored axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def voxel_ml(self) -> float:
        """Return the volume of one voxel in ml."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)

    def matches(self, other: Geometry, tolerance: float = 1e-2) -> bool:
        """Return whether two grids hold the same voxels.

        Args:
            other: The other grid.
            tolerance: Largest distance between corner voxels, as a share of the smallest voxel edge.

        Returns:
            True for equal shapes whose corner voxels lie together.
        """
        if self.shape != other.shape:
            return False
        last = np.array(self.shape) - 1
        corners = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
        apart = np.abs(corners @ (self.affine - other.affine).T)[:, :3].max()
        return bool(apart <= tolerance * min(self.spacing))


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a label map.

    Attributes:
        array: (C, X, Y, Z); float32 for scans (integers of up to 16 bits where the caller of `read_volume` asks for them), an
            integer type for label maps (then C is 1).
        geometry: The grid.
        name: The name of the case, by which results are called.
        source: The file or folder that it was read from, if any.
        notes: Warnings of the reader, each {"code", "message", "advice"}: what it corrected, and what is uncertain.
    """

    array: np.ndarray
    geometry: Geometry
    name: str = ""
    source: Path | None = None
    notes: tuple[dict[str, str], ...] = field(default=())

    @property
    def channels(self) -> int:
        """Return the number of channels."""
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

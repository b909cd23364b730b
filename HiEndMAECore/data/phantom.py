"""Digital patients: contrast-enhanced CT of the lower chest and upper abdomen with their label maps, made from a seed.

With them the whole program can be shown and tested without the scan of a person. The anatomy is drawn in the millimeters of a
standard patient from signed distance functions. Patients differ in position on the table, build, a smooth random deformation,
the position, size and rotation of every organ, and the contrast phase: labels copied from one patient to another do not fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from HiEndMAECore.io.volume import Geometry, Volume

from .phantom_anatomy import PatientPainter
from .phantom_structures import (
    AORTA,
    LEFT_KIDNEY,
    LIVER,
    PHANTOM_STRUCTURES,
    RIGHT_KIDNEY,
    SPINE,
    SPLEEN,
    STOMACH,
)

__all__ = [
    "AORTA", "DEMO_SEEDS", "LEFT_KIDNEY", "LIVER", "PHANTOM_STRUCTURES", "RIGHT_KIDNEY", "SPINE", "SPLEEN", "STOMACH",
    "make_patient",
]  # fmt: skip

DEMO_SEEDS = (1, 2)


def make_patient(
    seed: int, *, shape: Sequence[int] = (112, 96, 96), spacing: Sequence[float] = (3.0, 3.0, 3.0)
) -> tuple[Volume, Volume]:
    """Make the digital patient of a seed.

    Args:
        seed: The patient.
        shape: Voxels from left to right, from posterior to anterior, and from inferior to superior; the affine is RAS and
            diagonal.
        spacing: Voxel edges in mm. Another grid shows the same anatomy with other noise.

    Returns:
        The CT (1, X, Y, Z), float32 in whole HU, and the label map (1, X, Y, Z), uint8 with the values of
        `PHANTOM_STRUCTURES`.

    Raises:
        ValueError: The grid is impossible.
    """
    if len(shape) != 3 or min(shape) < 8:
        raise ValueError(f"shape must be three numbers of 8 or more, not {tuple(shape)}")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must be three positive numbers of mm, not {tuple(spacing)}")
    hu, labels = PatientPainter(seed, tuple(shape), tuple(spacing)).patient()
    affine = np.diag([*map(float, spacing), 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(shape, spacing)]
    geometry = Geometry((int(shape[0]), int(shape[1]), int(shape[2])), affine)
    name = f"patient_{seed:03d}"
    return Volume(hu[None], geometry, name=name), Volume(labels[None], geometry, name=name)

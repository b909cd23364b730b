"""What identifies a scan (voxel digest), and what describes it (fingerprint: spacing, extent, intensities).

The fingerprint is plain JSON without pixels. A model's description holds those of its training cases:

    {"spacing_mm": [R, A, S], "extent_mm": [R, A, S] of the body, "intensities": [[5th, 50th, 95th percentile] a channel]}
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np

from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.volume import Geometry, Volume

from .cases import Case

_PERCENTILES = [5, 50, 95]
_SAMPLED_VOXELS = 1e6  # percentiles of this many voxels are as good as those of all
_WHOLE_NUMBER = 1e-2  # intensities this close to whole numbers are compared as such


def scan_fingerprint(original: Geometry, array: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """Return the fingerprint of one scan.

    Args:
        original: The scan's own grid.
        array: The preprocessed scan (C, H, W, D) in [0, 1].
        spacing: Its spacing in mm along R, A and S.

    Returns:
        The dictionary of this module's docstring; lengths in mm.
    """
    voxel_edges = [0.0, 0.0, 0.0]
    for axis, (world_axis, _) in enumerate(nib.orientations.io_orientation(original.affine)):
        voxel_edges[int(world_axis)] = round(original.spacing[axis], 3)
    stride = max(1, math.ceil((array[0].size / _SAMPLED_VOXELS) ** (1 / 3)))
    sampled = array[:, ::stride, ::stride, ::stride].reshape(len(array), -1)
    return {
        "spacing_mm": voxel_edges,
        "extent_mm": [round(n * step, 1) for n, step in zip(array.shape[1:], spacing)],
        "intensities": np.percentile(sampled, _PERCENTILES, axis=1).T.round(3).tolist(),
    }


def read_voxel_digest(case: Case) -> str:
    """Return the `voxel_digest` of a scan on disk. Raises `InputError` when it cannot be read."""
    return voxel_digest(read_volume(case.channels))


def voxel_digest(volume: Volume) -> str:
    """Return a digest that all copies of a scan share, whatever their names, formats and stored orientations.

    It covers the intensities along the axes next to R, A and S. It is not taken from preprocessed voxels, where the last
    bit of a number in a header moves some voxels across a rounding, and it leaves out spacing and origin, which exports
    change. A cropped or resampled copy has another digest.
    """
    digest = hashlib.blake2b(digest_size=16)
    orientation = nib.orientations.io_orientation(volume.affine)
    for channel in volume.array:
        reoriented = nib.orientations.apply_orientation(channel, orientation)
        # Whole numbers survive every format and slope; MRI in other units counts to the last bit.
        whole = all(np.abs(plane - np.rint(plane)).max(initial=0.0) < _WHOLE_NUMBER for plane in reoriented)
        digest.update(f"{reoriented.shape} {whole}".encode())
        for plane in reoriented:
            digest.update(
                np.ascontiguousarray(np.rint(plane) + 0.0 if whole else plane).data
            )  # + 0.0 turns -0.0 to 0.0
    return digest.hexdigest()

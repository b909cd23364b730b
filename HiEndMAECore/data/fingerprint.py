"""How far to trust a result: sureness of each structure, slices to look at first, scans unlike what a model learned from.

Facts of a scan (plain JSON, no pixels) are kept in a model's description for its teaching scans, and compared here:

    {"spacing_mm": [R, A, S], "extent_mm": [R, A, S] of the body, "intensities": [[5th, 50th, 95th percentile] a channel]}
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import io_orientation

from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.volume import Geometry, Volume

from .cases import Case


def scan_fingerprint(native: Geometry, array: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """Facts of one scan. array: (C, H, W, D), prepared at `spacing` (mm along R, A, S)."""
    ras = [0.0, 0.0, 0.0]
    for axis, (into, _) in enumerate(nib.orientations.io_orientation(native.affine)):
        ras[int(into)] = round(native.spacing[axis], 3)
    stride = max(1, math.ceil((array[0].size / 1e6) ** (1 / 3)))
    thin = array[:, ::stride, ::stride, ::stride].reshape(len(array), -1)
    return {
        "spacing_mm": ras,
        "extent_mm": [round(n * step, 1) for n, step in zip(array.shape[1:], spacing)],
        "intensities": np.percentile(thin, [5, 50, 95], axis=1).T.round(3).tolist(),
    }


def read_voxel_digest(case: Case) -> str:
    """`content_of` the scan on disk."""
    return voxel_digest(read_volume(case.channels))


def voxel_digest(volume: Volume) -> str:
    """What two copies of a scan share whatever their names, formats and stored orientations: a digest of the voxels
    as they were measured, along the axes next to R, A, S.

    Not of the prepared voxels, where the last bit of a header's number moves some across a rounding; and without
    spacing and origin, which exports change. A copy that was cropped or resampled is another scan here.
    """
    digest = hashlib.blake2b(digest_size=16)
    order = io_orientation(volume.affine)
    for channel in volume.array:
        turned = nib.orientations.apply_orientation(channel, order)
        # Whole numbers survive every format and slope; MRI in other units counts to the last bit.
        whole = all(np.abs(plane - np.rint(plane)).max(initial=0.0) < 1e-2 for plane in turned)
        digest.update(f"{turned.shape} {whole}".encode())
        for plane in turned:
            digest.update(np.ascontiguousarray(np.rint(plane) + 0.0 if whole else plane).data)  # no -0.0
    return digest.hexdigest()

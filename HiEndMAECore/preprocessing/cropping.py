"""From a scan to what the network sees, and back: normalised intensities on a regular grid close to R, A, S.

Order: limits of the intensities over the whole scan, crop to the body, normalise, smooth against aliasing, resample.
The way back needs only the network grid's affine and the scan's own geometry (`Grid`).
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from HiEndMAECore.io.volume import Volume

_AIR = -500.0  # HU: below is air or lung, above is body or table
_MARGIN = 5.0  # mm kept around the body


def body_bounding_box(volume: Volume, *, hounsfield: bool) -> list[tuple[int, int]]:
    """Per stored axis, first and end voxel of the body: on CT the large pieces above -500 HU (two legs, but no table);
    else what is brighter than a tenth of the scan's range. The whole scan when next to nothing is found. Looked for at
    about 4 mm."""
    shape, spacing = volume.shape, np.array(volume.spacing)
    stride = np.minimum(np.maximum(1, np.round(4.0 / spacing)), shape).astype(int)
    places = [_both_ends(n, int(step)) for n, step in zip(shape, stride)]
    small = volume.array[np.ix_(np.arange(volume.channels), *places)]
    if hounsfield:
        pieces, _ = ndimage.label(small[0] > _AIR)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0  # the air
        mask = (sizes > 0.1 * sizes.max())[pieces]
    else:
        mask = np.zeros(small.shape[1:], bool)
        for channel in small:
            dark, bright = np.percentile(channel, [1, 99])
            mask |= channel > dark + 0.1 * (bright - dark)
    if mask.sum() < 1e-3 * mask.size:
        return [(0, n) for n in shape]
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = stride + np.ceil(_MARGIN / spacing).astype(int)
    return [
        (max(0, int(there[part.start] - m)), min(n, int(there[part.stop - 1] + 1 + m)))
        for part, there, m, n in zip(found, places, margin, shape)
    ]


def _both_ends(count: int, step: int) -> np.ndarray:
    """Every step-th of `count` voxels, counted from both ends to the middle: a flipped scan shows the same ones."""
    half = np.arange(0, (count + 1) // 2, step)
    return np.unique([half, count - 1 - half])

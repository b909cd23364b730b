"""The bounding box of the body, to which scans are cropped before resampling."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from HiEndMAECore.io.volume import Volume

_BODY_HU = -500.0  # air and lung are darker, the body and the table are brighter
_MARGIN_MM = 5.0  # around the body
_SEARCH_MM = 4.0  # spacing at which the body is looked for
_COMPONENT_SHARE = 0.1  # components of this share of the largest are body, such as a second leg; a table is smaller
_BRIGHT_SHARE = 0.1  # share of the intensity range above which a voxel of MRI is body
_MIN_BODY_SHARE = 1e-3  # of the scan; with less the whole scan is used


def body_bounding_box(volume: Volume, *, hounsfield: bool) -> list[tuple[int, int]]:
    """Return the bounding box of the body with a margin of 5 mm.

    Args:
        volume: The scan.
        hounsfield: True for CT in HU: the body is the large components above -500 HU. False: it is what is brighter than a
            tenth of the scan's intensity range.

    Returns:
        First and end voxel along each stored axis; the whole scan when next to no body is found.
    """
    shape, spacing = volume.shape, np.array(volume.spacing)
    stride = np.minimum(np.maximum(1, np.round(_SEARCH_MM / spacing)), shape).astype(int)
    positions = [_symmetric_positions(n, int(step)) for n, step in zip(shape, stride)]
    coarse = volume.array[np.ix_(np.arange(volume.channels), *positions)].astype(np.float32, copy=False)
    mask = _body_mask_ct(coarse) if hounsfield else _body_mask_bright(coarse)
    if mask.sum() < _MIN_BODY_SHARE * mask.size:
        return [(0, n) for n in shape]
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = stride + np.ceil(_MARGIN_MM / spacing).astype(int)
    return [
        (max(0, int(voxels[part.start] - m)), min(n, int(voxels[part.stop - 1] + 1 + m)))
        for part, voxels, m, n in zip(box, positions, margin, shape)
    ]


def _body_mask_ct(array: np.ndarray) -> np.ndarray:
    """Return the large connected components of a CT (1, X, Y, Z) above -500 HU."""
    components, _ = ndimage.label(array[0] > _BODY_HU)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # the background
    return (sizes > _COMPONENT_SHARE * sizes.max())[components]


def _body_mask_bright(array: np.ndarray) -> np.ndarray:
    """Return the voxels of a scan (C, X, Y, Z) that are bright in any channel."""
    mask = np.zeros(array.shape[1:], bool)
    for channel in array:
        dark, bright = np.percentile(channel, [1, 99])
        mask |= channel > dark + _BRIGHT_SHARE * (bright - dark)
    return mask


def _symmetric_positions(count: int, step: int) -> np.ndarray:
    """Return every step-th of `count` voxels, counted from both ends, so that a flipped scan is sampled alike."""
    half = np.arange(0, (count + 1) // 2, step)
    return np.unique([half, count - 1 - half])

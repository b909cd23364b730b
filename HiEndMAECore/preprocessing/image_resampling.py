"""Normalizing, filtering and resampling an image to a grid with parallel axes, in one pass over its voxels.

The low-pass filter and linear interpolation are one matrix for each axis. The image is worked on some planes at a time, so
that no copy of it is made. The result is that of `resampling.antialias` and `resample_affine`, up to rounding in 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from .orientation import parallel_positions

FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))  # full width at half maximum of a Gaussian with sigma 1
TRUNCATE = 3.0  # of the low-pass filter, in sigma
_MIN_FILTERED_RATIO = 1.05
_BLOCK_VOXELS = 2**19


def antialias_sigma(ratio: float, length: int) -> float | None:
    """Return sigma in voxels of the low-pass filter along an axis of `length` voxels; None where there is none.

    The filter is a Gaussian whose squared width is the difference of those of the two voxel profiles (Cardoso et al., "Scale
    factor point spread function matching", MICCAI 2015): sigma = sqrt(ratio^2 - 1) / 2.355 voxels.

    Args:
        ratio: Target spacing over own spacing; up to 1.05, nothing is filtered.
        length: Voxels along the axis.
    """
    if ratio <= _MIN_FILTERED_RATIO or length < 2:
        return None
    return float(np.sqrt(ratio**2 - 1.0) / FWHM)


def resample_parallel_image(
    array: np.ndarray,
    output_to_input: np.ndarray,
    output_shape: Sequence[int],
    *,
    ratios: Sequence[float],
    normalize: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Normalize an image, filter it against aliasing and resample it linearly to a grid with parallel axes.

    Args:
        array: Input (X, Y, Z).
        output_to_input: (4, 4), from output voxel to input voxel, for which `orientation.is_parallel` holds.
        output_shape: Voxels of the output along each axis.
        ratios: Target spacing over own spacing along each axis of the input.
        normalize: Called with some planes; returns them as float32.

    Returns:
        float32 on the output grid; 0 further than half a voxel from the centers of the input's outermost voxels.
    """
    sources, positions = parallel_positions(output_to_input, output_shape)
    matrices = {
        source: _axis_matrix(points, array.shape[source], antialias_sigma(ratios[source], array.shape[source]))
        for source, points in zip(sources, positions)
    }
    order = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))  # slowest axis in memory first
    slow, middle, fast = (matrices[axis] for axis in order)
    planes = array.transpose(order)
    reduced = np.empty((len(planes), len(middle), len(fast)), np.float32)
    step = max(1, _BLOCK_VOXELS // max(1, planes[0].size))
    for first in range(0, len(planes), step):
        block = normalize(planes[first : first + step])
        reduced[first : first + step] = middle @ (block @ fast.T)
    result = (slow @ reduced.reshape(len(planes), -1)).reshape(len(slow), len(middle), len(fast))
    return np.ascontiguousarray(result.transpose([order.index(source) for source in sources]))


def _axis_matrix(positions: np.ndarray, length: int, sigma: float | None) -> np.ndarray:
    """Return the matrix (N, length), float32, of low-pass filter and interpolation along one axis.

    Args:
        positions: (N,) in input voxels.
        length: Voxels of the input along the axis.
        sigma: Of the filter, in input voxels; None for no filter.
    """
    inside = (positions >= -0.5) & (positions < length - 0.5)
    floors = np.floor(positions).astype(int)
    rows, upper_weight = np.arange(len(positions)), positions - floors
    matrix = np.zeros((len(positions), length))
    for corner, weight in ((floors, 1.0 - upper_weight), (floors + 1, upper_weight)):
        np.add.at(matrix, (rows[inside], np.clip(corner, 0, length - 1)[inside]), weight[inside])
    if sigma is not None:
        # Column k of the filtered identity is the response to voxel k.
        identity = np.eye(length)
        matrix = matrix @ ndimage.gaussian_filter1d(identity, sigma, axis=0, mode="nearest", truncate=TRUNCATE)
    return matrix.astype(np.float32)

"""Resampling of images and label maps: always one affine map from output voxels to input voxels.

Arrays are (X, Y, Z), affines map voxel indices to RAS mm. Images are interpolated linearly, label maps by the largest share of
linear interpolation. A stack of slices that is not a regular grid is resampled run by run (see `orientation`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from HiEndMAECore.io.volume import Geometry

from .image_resampling import TRUNCATE, antialias_sigma
from .label_resampling import resample_parallel_label_map
from .orientation import is_parallel, regular_runs, translate_affine

Sampler = Callable[[np.ndarray, np.ndarray, "tuple[int, int, int]"], np.ndarray]


def resample_affine(
    array: np.ndarray,
    output_to_input: np.ndarray,
    output_shape: Sequence[int],
    *,
    nearest: bool = False,
    outside: float = 0.0,
    dtype: int | None = None,
) -> np.ndarray:
    """Resample an array through an affine map by linear or nearest interpolation.

    Args:
        array: Input (X, Y, Z).
        output_to_input: (4, 4), from output voxel to input voxel; it may flip, permute and shear.
        output_shape: Voxels of the output along each axis.
        nearest: Take the nearest voxel instead of interpolating.
        outside: Value of voxels further than half a voxel from the centers of the input's outermost voxels.
        dtype: SimpleITK pixel type of the result, if it is not the input's.

    Returns:
        The array on the output grid.
    """
    matrix, offset = output_to_input[:3, :3], output_to_input[:3, 3]
    if array.dtype == bool:
        array = array.view(np.uint8)
    # SimpleITK has the fastest axis first: the axes of a C-ordered array are reversed, those of a Fortran-ordered one not.
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        image = sitk.GetImageFromArray(array.T)
        matrix = matrix[:, ::-1]
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array))
        matrix, offset = matrix[::-1, ::-1], offset[::-1]
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(np.ascontiguousarray(matrix, dtype=np.float64).ravel().tolist())
    transform.SetTranslation([float(v) for v in offset])
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in reversed(output_shape)])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    resampler.SetDefaultPixelValue(float(outside))
    if dtype is not None:
        resampler.SetOutputPixelType(dtype)
    return sitk.GetArrayFromImage(resampler.Execute(image))


def resample_label_map(
    labels: np.ndarray, output_to_input: np.ndarray, output_shape: Sequence[int], *, order: Literal["C", "F"] = "C"
) -> np.ndarray:
    """Resample a label map through an affine map: each voxel gets the label with the largest interpolated share.

    The shares are those of linear interpolation and add up to one, background included, so that borders are smooth where
    nearest-neighbor interpolation makes steps. Through a map that rotates or shears, one label is worked on at a time, within
    its own box: memory is then one float32 array of the output.

    Args:
        labels: Label map (X, Y, Z) of an integer type.
        output_to_input: (4, 4), from output voxel to input voxel.
        output_shape: Voxels of the output along each axis.
        order: Memory layout of the result.

    Returns:
        The label map on the output grid, of the same type.
    """
    shape = tuple(int(n) for n in output_shape)
    if is_parallel(output_to_input, shape):
        return resample_parallel_label_map(labels, output_to_input, shape, order=order)
    return _resample_through_shear(labels, output_to_input, shape, order)


def _resample_through_shear(
    labels: np.ndarray, output_to_input: np.ndarray, shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray:
    """Resample a label map through any affine map, label by label."""
    result = np.zeros(shape, labels.dtype, order=order)
    if labels.size and int(labels.max()) > 65535:  # find_objects keeps a list as long as the largest value
        values, small = np.unique(labels, return_inverse=True)
        if values[0] != 0:
            values, small = np.insert(values, 0, 0), small + 1
        small = small.reshape(labels.shape).astype(np.uint16)
        indices = _resample_through_shear(small, output_to_input, shape, order)
        return values.astype(labels.dtype)[indices]

    boxes = {value: box for value, box in enumerate(ndimage.find_objects(labels), start=1) if box is not None}
    input_to_output = np.linalg.inv(output_to_input)
    targets = {}
    for value, box in boxes.items():
        target = _box_through(input_to_output, [(part.start, part.stop) for part in box], shape)
        if target is not None:
            targets[value] = target
    if not targets:
        return result

    union = [(min(t[a][0] for t in targets.values()), max(t[a][1] for t in targets.values())) for a in range(3)]
    best = _share(labels, 0, [boxes[value] for value in targets], output_to_input, union)
    start = [low for low, _ in union]
    for value, target in targets.items():
        share = _share(labels, value, [boxes[value]], output_to_input, target)
        best_in_target = best[tuple(slice(low - s, high - s) for (low, high), s in zip(target, start))]
        larger = share > best_in_target
        np.copyto(best_in_target, share, where=larger)
        np.copyto(result[tuple(slice(*span) for span in target)], result.dtype.type(value), where=larger)
    return result


def _box_through(
    matrix: np.ndarray, box: Sequence[tuple[int, int]], shape: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Return the voxels of a grid of `shape` that a box of the other grid, one voxel wider, can touch; None if none."""
    ends = np.array(np.meshgrid(*[(low - 1, high) for low, high in box], [1.0])).reshape(4, -1)
    mapped = (matrix @ ends)[:3]
    low = np.maximum(np.floor(mapped.min(axis=1) + 1e-6).astype(int), 0)
    high = np.minimum(np.ceil(mapped.max(axis=1) - 1e-6).astype(int) + 1, shape)
    if (low >= high).any():
        return None
    return [(int(a), int(b)) for a, b in zip(low, high)]


def _share(
    labels: np.ndarray, value: int, boxes: list, output_to_input: np.ndarray, target: list[tuple[int, int]]
) -> np.ndarray:
    """Return the interpolated share of one label (float32, 0 to 1) on the box `target` of the output grid."""
    low = [max(min(box[a].start for box in boxes) - 1, 0) for a in range(3)]
    high = [max(box[a].stop for box in boxes) + 1 for a in range(3)]
    indicator = labels[tuple(slice(a, b) for a, b in zip(low, high))] == value
    target_to_part = translate_affine(output_to_input, [a for a, _ in target])
    target_to_part[:3, 3] -= low
    size = [b - a for a, b in target]
    return resample_affine(indicator, target_to_part, size, outside=float(value == 0), dtype=sitk.sitkFloat32)


def antialias(array: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """Low-pass filter an array before it is resampled to a coarser grid, by a Gaussian of `antialias_sigma`.

    Args:
        array: (X, Y, Z).
        ratios: Target spacing over own spacing along each axis.

    Returns:
        The filtered array, float32; the input itself when no axis is filtered.
    """
    for axis, ratio in enumerate(ratios):
        sigma = antialias_sigma(ratio, array.shape[axis])
        if sigma is not None:
            array = ndimage.gaussian_filter1d(
                array, sigma, axis=axis, mode="nearest", truncate=TRUNCATE, output=np.float32
            )
    return array


def resample_from_stack(
    array: np.ndarray, source: Geometry, affine: np.ndarray, shape: tuple[int, int, int], sampler: Sampler
) -> np.ndarray:
    """Resample from a stack of slices to a regular grid, run by run.

    Args:
        array: Voxels (X, Y, Z) on the grid of `source`.
        source: The stack.
        affine: (4, 4) of the target grid; if the stack has several runs, its axes must be parallel to the slices.
        shape: Voxels of the target grid.
        sampler: Called for each run with (array, output_to_input, output_shape).

    Returns:
        The array on the target grid.
    """
    pieces = regular_runs(source)
    if len(pieces) == 1:
        return sampler(array, np.linalg.inv(pieces[0].affine) @ affine, shape)
    normal = np.cross(source.affine[:3, 0], source.affine[:3, 1])
    normal *= np.sign(normal @ pieces[0].affine[:3, 2])
    axis = int(np.abs(normal @ affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).argmax())
    heights = normal @ (affine[:3, 3, None] + affine[:3, axis, None] * np.arange(shape[axis]))
    borders = [normal @ piece.affine[:3, 3] for piece in pieces[1:]]
    owner = np.searchsorted(borders, heights, side="right")
    result = None
    for index, piece in enumerate(pieces):
        planes = np.flatnonzero(owner == index)
        if not len(planes):
            continue
        start, size = [0, 0, 0], list(shape)
        start[axis], size[axis] = int(planes[0]), len(planes)
        part = sampler(
            array[:, :, piece.first : piece.last + 1],
            np.linalg.inv(piece.affine) @ translate_affine(affine, start),
            (size[0], size[1], size[2]),
        )
        result = np.zeros(shape, part.dtype) if result is None else result
        result[tuple(slice(a, a + n) for a, n in zip(start, size))] = part
    assert result is not None  # every plane has an owner
    return result


def resample_to_stack(array: np.ndarray, affine: np.ndarray, target: Geometry, sampler: Sampler) -> np.ndarray:
    """Resample from the regular grid of `affine` to exactly the voxels of a stack, at the true positions of its slices.

    Args:
        array: Voxels on the regular grid.
        affine: (4, 4) of the regular grid.
        target: The stack.
        sampler: Called for each run with (array, output_to_input, output_shape).

    Returns:
        The array (X, Y, Z) on the grid of `target`.
    """
    world_to_input = np.linalg.inv(affine)
    pieces, (x, y, z) = regular_runs(target), target.shape
    if len(pieces) == 1:
        return sampler(array, world_to_input @ pieces[0].affine, (x, y, z))
    parts = []
    for piece in pieces:
        end = piece.last + 1 if piece is pieces[-1] else piece.last  # the border slice is the next run's first
        parts.append(sampler(array, world_to_input @ piece.affine, (x, y, end - piece.first)))
    return np.concatenate(parts, axis=2)

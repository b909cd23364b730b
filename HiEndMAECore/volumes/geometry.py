"""Grids and the ways between them: every resampling of the engine is one affine map from output to input voxels.

Arrays are (X, Y, Z), affines map voxel indices to RAS mm. A stack of slices that is no regular grid (gantry tilt,
uneven gaps) is cut into runs of equally spaced slices; inside a run the map is affine again (a shear where there is
tilt).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .volume import Geometry

Sampler = Callable[[np.ndarray, np.ndarray, "tuple[int, int, int]"], np.ndarray]
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))  # full width at half maximum of a Gaussian of sigma 1
_RUN_TOLERANCE = 0.01  # mm that a slice may lie off the straight line of its run


@dataclass(frozen=True)
class Run:
    """Slices `first` to `last` (both in) that are equally spaced; `affine` maps (x, y, z - first) to RAS mm."""

    first: int
    last: int
    affine: np.ndarray


def runs(geometry: Geometry) -> list[Run]:
    """The stack as regular pieces; neighbours share their border slice. One piece when there are no `slice_origins`."""
    origins, count = geometry.slice_origins, geometry.shape[2]
    if origins is None or count == 1:
        return [Run(0, count - 1, geometry.affine)]
    pieces, first = [], 0
    while first < count - 1:
        last, step = first + 1, origins[first + 1] - origins[first]
        while last + 1 < count:
            off = origins[last + 1] - origins[first] - (last + 1 - first) * step
            if np.linalg.norm(off) > _RUN_TOLERANCE:
                break
            last += 1
        affine = geometry.affine.copy()
        affine[:3, 2] = (origins[last] - origins[first]) / (last - first)
        affine[:3, 3] = origins[first]
        pieces.append(Run(first, last, affine))
        first = last
    return pieces


def translated(affine: np.ndarray, start: Sequence[float]) -> np.ndarray:
    """The affine of the part of a grid that begins at voxel `start`."""
    moved = np.array(affine, dtype=np.float64)
    moved[:3, 3] = affine[:3, :3] @ np.asarray(start, dtype=np.float64) + affine[:3, 3]
    return moved


def ras_axes(affine: np.ndarray) -> np.ndarray:
    """(3, 3) orthonormal directions of a grid, as columns, in the order and sign closest to R, A, S.

    A sheared grid keeps its first axis (the rows) and the plane of its first two; the third becomes their normal.
    """
    directions, upper = np.linalg.qr(affine[:3, :3])
    directions = directions * np.sign(np.diag(upper))
    orientation = nib.orientations.io_orientation(nib.affines.from_matvec(directions))
    axes = np.empty((3, 3))
    for column, (axis, sign) in enumerate(orientation):
        axes[:, int(axis)] = directions[:, column] * sign
    return axes


def corners(geometry: Geometry, box: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """(N, 3) RAS mm of the outer voxel edges of the grid, or of the voxels `first <= i < end` of a box in it."""
    (x0, x1), (y0, y1), (z0, z1) = box or [(0, n) for n in geometry.shape]
    points = []
    for run in runs(geometry):
        low, high = max(z0, run.first), min(z1 - 1, run.last)
        if low > high:
            continue
        for z in (low - 0.5 - run.first, high + 0.5 - run.first):
            points += [(run.affine @ (x, y, z, 1))[:3] for x in (x0 - 0.5, x1 - 0.5) for y in (y0 - 0.5, y1 - 0.5)]
    return np.array(points)


def regular_grid(
    geometry: Geometry, spacing: Sequence[float], *, box: Sequence[tuple[int, int]] | None = None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The closest-to-RAS orthogonal grid at `spacing` (mm along R, A, S) over a scan or a box of its voxels.

    The grid is centred on what it covers, at least one voxel each way, and no outermost voxel centre lies outside.
    Returns its affine and shape.
    """
    axes, step = ras_axes(geometry.affine), np.asarray(spacing, dtype=np.float64)
    along = corners(geometry, box) @ axes
    low, high = along.min(axis=0), along.max(axis=0)
    shape = np.maximum(1, np.ceil((high - low) / step - 0.01)).astype(int)
    first = (low + high) / 2 - (shape - 1) / 2 * step
    affine = nib.affines.from_matvec(axes * step, axes @ first)
    return affine, (int(shape[0]), int(shape[1]), int(shape[2]))


def sample(
    array: np.ndarray,
    output_to_input: np.ndarray,
    output_shape: Sequence[int],
    *,
    nearest: bool = False,
    outside: float = 0.0,
    dtype: int | None = None,
) -> np.ndarray:
    """`array` (X, Y, Z) seen through an affine map, by linear or nearest interpolation.

    output_to_input: (4, 4), output voxel -> input voxel; flips, permutations and shears are welcome.
    outside: value further than half a voxel from the input's outermost voxel centres.
    dtype: a SimpleITK pixel type for the result, when not the input's.
    """
    matrix, offset = output_to_input[:3, :3], output_to_input[:3, 3]
    if array.dtype == bool:
        array = array.view(np.uint8)
    # SimpleITK counts the fastest axis first: a C-ordered array is its axes reversed, a Fortran-ordered one is not.
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


def resample_labels(labels: np.ndarray, output_to_input: np.ndarray, output_shape: Sequence[int]) -> np.ndarray:
    """A label map (X, Y, Z) seen through an affine map: each voxel gets the label of the largest interpolated share.

    The shares are those of linear interpolation (they add up to one, background included), so borders are smooth where
    nearest neighbour makes steps. One label at a time within its own box: memory is one float32 array of the output.
    Returns the same integer type.
    """
    shape = tuple(int(n) for n in output_shape)
    result = np.zeros(shape, labels.dtype)
    if labels.size and int(labels.max()) > 65535:  # find_objects keeps a list as long as the largest value
        values, small = np.unique(labels, return_inverse=True)
        if values[0] != 0:
            values, small = np.insert(values, 0, 0), small + 1
        indices = resample_labels(small.reshape(labels.shape).astype(np.uint16), output_to_input, shape)
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

    everything = [(min(t[a][0] for t in targets.values()), max(t[a][1] for t in targets.values())) for a in range(3)]
    best = _share(labels, 0, [boxes[value] for value in targets], output_to_input, everything)
    start = [low for low, _ in everything]
    for value, target in targets.items():
        share = _share(labels, value, [boxes[value]], output_to_input, target)
        there = best[tuple(slice(low - s, high - s) for (low, high), s in zip(target, start))]
        wins = share > there
        np.copyto(there, share, where=wins)
        np.copyto(result[tuple(slice(*span) for span in target)], result.dtype.type(value), where=wins)
    return result


def _box_through(
    matrix: np.ndarray, box: Sequence[tuple[int, int]], shape: Sequence[int]
) -> list[tuple[int, int]] | None:
    """The voxels of a grid of `shape` that a box of the other grid, one voxel wider, can touch; None if none."""
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
    """Interpolated share (0 to 1, float32) of one label on the box `target` of the output grid."""
    low = [max(min(box[a].start for box in boxes) - 1, 0) for a in range(3)]
    high = [max(box[a].stop for box in boxes) + 1 for a in range(3)]
    indicator = labels[tuple(slice(a, b) for a, b in zip(low, high))] == value
    here = translated(output_to_input, [a for a, _ in target])
    here[:3, 3] -= low
    size = [b - a for a, b in target]
    return sample(indicator, here, size, outside=float(value == 0), dtype=sitk.sitkFloat32)


def smooth(array: np.ndarray, ratios: Sequence[float]) -> np.ndarray:
    """Take away what a coarser grid cannot carry; `ratios` are target / own spacing along each axis of (X, Y, Z).

    A Gaussian whose width squared is the difference of the two voxel profiles' (Cardoso et al., "Scale factor point
    spread function matching", MICCAI 2015): sigma = sqrt(ratio^2 - 1) / 2.355 voxels.
    """
    for axis, ratio in enumerate(ratios):
        if ratio > 1.05 and array.shape[axis] > 1:
            sigma = np.sqrt(ratio**2 - 1.0) / _FWHM
            array = ndimage.gaussian_filter1d(array, sigma, axis=axis, mode="nearest", truncate=3.0, output=np.float32)
    return array


def from_stack(
    array: np.ndarray, source: Geometry, affine: np.ndarray, shape: tuple[int, int, int], sampler: Sampler
) -> np.ndarray:
    """`array` on the grid of `source` -> the grid (affine, shape), whose axes are parallel to the slices if there are
    several runs. `sampler(array, output_to_input, output_shape)` does the work, run by run."""
    pieces = runs(source)
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
            np.linalg.inv(piece.affine) @ translated(affine, start),
            (size[0], size[1], size[2]),
        )
        result = np.zeros(shape, part.dtype) if result is None else result
        result[tuple(slice(a, a + n) for a, n in zip(start, size))] = part
    assert result is not None  # every plane has an owner
    return result


def to_stack(array: np.ndarray, affine: np.ndarray, target: Geometry, sampler: Sampler) -> np.ndarray:
    """`array` on the regular grid of `affine` -> exactly the voxels of `target`, at its slices' true positions."""
    world_to_input = np.linalg.inv(affine)
    pieces, (x, y, z) = runs(target), target.shape
    if len(pieces) == 1:
        return sampler(array, world_to_input @ pieces[0].affine, (x, y, z))
    parts = []
    for piece in pieces:
        end = piece.last + 1 if piece is pieces[-1] else piece.last  # the border slice is the next run's first
        parts.append(sampler(array, world_to_input @ piece.affine, (x, y, end - piece.first)))
    return np.concatenate(parts, axis=2)

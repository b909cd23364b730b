"""Label maps on the grid of their image: flips, permutations of axes and padding, never interpolation."""

from __future__ import annotations

import numpy as np

from HiEndMAECore.errors import InputError

from .volume import Geometry, Volume


def align_label_map(image: Volume, labels: Volume) -> Volume:
    """Return `labels` on exactly the grid of `image`, without interpolation.

    Axes are permuted and flipped, and background is added where a label file covers only a part of the image (3D Slicer
    crops its .seg.nrrd files).

    Args:
        image: The image whose grid is wanted.
        labels: A label map on the same voxels.

    Returns:
        The label map on the image's grid.

    Raises:
        InputError: `geometry_mismatch`, when voxels would have to be interpolated, or labelled ones lie outside the image.
    """
    if image.geometry.matches(labels.geometry):
        return labels
    matrix = np.linalg.inv(image.affine) @ labels.affine
    whole = np.rint(matrix)
    spans = np.abs(matrix - whole)[:3] @ [*labels.shape, 1]
    if spans.max() > 0.05 or (np.abs(whole[:3, :3]).sum(axis=0) != 1).any():
        raise _mismatch(image, labels)
    order = [int(np.abs(row).argmax()) for row in whole[:3, :3]]
    if sorted(order) != [0, 1, 2]:
        raise _mismatch(image, labels)
    reoriented = labels.array[0].transpose(order)
    flips = [bool(whole[row, axis] < 0) for row, axis in enumerate(order)]
    reoriented = reoriented[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    start = [
        int(whole[row, 3]) - (size - 1 if flip else 0) for row, (size, flip) in enumerate(zip(reoriented.shape, flips))
    ]
    result = np.zeros(image.shape, reoriented.dtype)
    into = [(max(0, s), min(n, s + size)) for s, n, size in zip(start, image.shape, reoriented.shape)]
    if all(low < high for low, high in into):
        taken = reoriented[tuple(slice(low - s, high - s) for (low, high), s in zip(into, start))]
        result[tuple(slice(*span) for span in into)] = taken
    if np.count_nonzero(result) != np.count_nonzero(reoriented):
        raise _mismatch(image, labels)
    return Volume(result[None], image.geometry, labels.name, labels.source, labels.notes)


def _mismatch(image: Volume, labels: Volume) -> InputError:
    return InputError(
        "geometry_mismatch",
        f"{labels.source or labels.name} does not lie on the voxels of {image.source or image.name}: "
        f"{describe_difference(image.geometry, labels.geometry)}.",
        "Resample the label map onto the scan with nearest neighbour, or export it again with the scan as reference.",
    )


def describe_difference(one: Geometry, other: Geometry) -> str:
    """Return in words how two grids differ."""
    if one.shape != other.shape:
        return f"{'x'.join(map(str, other.shape))} voxels instead of {'x'.join(map(str, one.shape))}"
    last = np.array(one.shape) - 1
    ends = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    apart = np.linalg.norm((ends @ (one.affine - other.affine).T)[:, :3], axis=1).max()
    return f"its corners lie up to {apart:.3g} mm apart"

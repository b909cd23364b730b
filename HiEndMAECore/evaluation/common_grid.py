"""A common grid for two label maps of one scan, found by flips, permutations of axes and padding, never by interpolation."""

from __future__ import annotations

import itertools

import numpy as np

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.alignment import align_label_map
from HiEndMAECore.io.volume import Geometry, Volume


def align_to_common_grid(prediction: Volume, reference: Volume) -> tuple[Volume, Volume]:
    """Return two label maps on one grid.

    A label map may be stored with other axes, or cropped to a part of the scan, as 3D Slicer does with .seg.nrrd files.
    Voxels outside a cropped label map are background.

    Args:
        prediction: Label map (1, X, Y, Z).
        reference: Label map of the same scan.

    Returns:
        Both on the prediction's grid where it contains every labelled voxel of the reference; otherwise both on the union
        of the two grids, along the axes of the reference.

    Raises:
        InputError: `geometry_mismatch`, when voxels would have to be interpolated, or when the grids do not overlap.
    """
    try:
        return prediction, align_label_map(prediction, reference)
    except InputError as error:
        union = Volume(*_empty_union(prediction, reference), name=reference.name, source=reference.source)
        try:
            return align_label_map(union, prediction), align_label_map(union, reference)
        except InputError:
            raise error from None


def _empty_union(prediction: Volume, reference: Volume) -> tuple[np.ndarray, Geometry]:
    """Return the smallest grid along the reference's axes that contains both grids, with an array that takes no memory."""
    to_reference = np.linalg.inv(reference.affine) @ prediction.affine
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size - 1) for size in prediction.shape))])
    indices = np.rint(corners @ to_reference.T)[:, :3].astype(int)
    first, last = indices.min(axis=0), indices.max(axis=0)
    reference_last = np.array(reference.shape) - 1
    if (last < 0).any() or (first > reference_last).any():
        raise InputError(
            "geometry_mismatch",
            f"{prediction.source or prediction.name} and {reference.source or reference.name} cover different places: "
            "their grids do not overlap.",
            "Check that both belong to the same scan.",
        )
    start = np.minimum(first, 0)
    x, y, z = (int(size) for size in np.maximum(last, reference_last) - start + 1)
    affine = reference.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    return np.broadcast_to(np.uint8(0), (1, x, y, z)), Geometry((x, y, z), affine)

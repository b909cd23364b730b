"""Post-processing of label maps: largest component, removal of small components, filling of holes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_NEIGHBORS_26 = np.ones((3, 3, 3))


def postprocess(
    labels: np.ndarray,
    values: Sequence[int],
    *,
    largest_component: bool = False,
    smallest_voxels: float | None = None,
    holes: bool = False,
) -> tuple[np.ndarray, dict[str, dict[int, int]]]:
    """Apply the chosen steps to a label map: remove components first, then fill holes.

    Args:
        labels: Label map (X, Y, Z).
        values: Label values to process.
        largest_component: Keep only the largest component of each structure.
        smallest_voxels: Remove components of fewer voxels than this.
        holes: Fill background that a structure encloses.

    Returns:
        The label map, and {name of the count in the report: {value: voxels}}.
    """
    counts: dict[str, dict[int, int]] = {}
    if largest_component:
        labels, counts["cleaned_voxels"] = keep_largest_component(labels, values)
    if smallest_voxels:
        labels, counts["island_voxels"] = remove_small_components(labels, values, smaller_than=smallest_voxels)
    if holes:
        labels, counts["filled_voxels"] = fill_holes(labels, values)
    return labels, counts


def keep_largest_component(labels: np.ndarray, values: Sequence[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Keep only the largest connected component (26 neighbors) of each structure.

    Args:
        labels: Label map (X, Y, Z).
        values: Label values to process.

    Returns:
        A copy of the label map without the other components, and {value: voxels removed}.
    """
    return remove_small_components(labels, values, smaller_than=None)


def remove_small_components(
    labels: np.ndarray, values: Sequence[int], *, smaller_than: float | None
) -> tuple[np.ndarray, dict[int, int]]:
    """Turn small connected components (26 neighbors) into background.

    Args:
        labels: Label map (X, Y, Z).
        values: Label values to process.
        smaller_than: Components of fewer voxels are removed; None removes all but the largest.

    Returns:
        A copy of the label map without these components, and {value: voxels removed}.
    """
    result, removed = labels.copy(), {}
    regions = ndimage.find_objects(labels)
    for value in values:
        region = regions[value - 1] if value <= len(regions) else None
        if region is None:
            continue
        components, count = ndimage.label(labels[region] == value, structure=_NEIGHBORS_26)
        sizes = np.bincount(components.ravel(), minlength=count + 1)
        sizes[0] = 0
        is_small = np.arange(count + 1) != sizes.argmax() if smaller_than is None else sizes < smaller_than
        is_small[0] = False
        mask = is_small[components]
        if mask.any():
            result[region][mask] = 0
            removed[value] = int(mask.sum())
    return result, removed


def fill_holes(labels: np.ndarray, values: Sequence[int]) -> tuple[np.ndarray, dict[int, int]]:
    """Give background that one structure encloses on all sides (6 neighbors) to that structure.

    Other structures inside it stay.

    Args:
        labels: Label map (X, Y, Z).
        values: Label values to process.

    Returns:
        A copy of the label map with filled holes, and {value: voxels added}.
    """
    result, added = labels.copy(), {}
    regions = ndimage.find_objects(labels)
    for value in values:
        region = regions[value - 1] if value <= len(regions) else None
        if region is None:
            continue
        mask = ndimage.binary_fill_holes(labels[region] == value) & (result[region] == 0)
        if mask.any():
            result[region][mask] = value
            added[value] = int(mask.sum())
    return result, added

"""Post-processing: largest component, small components, holes, and the counts of changed voxels."""

from __future__ import annotations

import numpy as np

from HiEndMAECore.inference.postprocessing import (
    fill_holes,
    keep_largest_component,
    postprocess,
    remove_small_components,
)


def test_largest_component_is_kept_and_removed_voxels_are_counted() -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:8, 2:8, 2:8] = 1
    labels[8, 8, 8] = 1  # touches by a corner: the same component
    labels[15:17, 15, 15] = 1
    labels[12:14, 2:4, 2:4] = 2
    result, removed = keep_largest_component(labels, [1, 2, 7])
    assert removed == {1: 2}
    assert int((result == 1).sum()) == 6**3 + 1
    assert np.array_equal(result == 2, labels == 2)
    assert int((labels == 1).sum()) == 6**3 + 3  # the input is unchanged


def labels_with_a_hole() -> np.ndarray:
    """A cube of 1 with a hole of two voxels and one voxel of 2 inside, and components of two and of one voxel."""
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:9, 2:9, 2:9] = 1
    labels[4:6, 4, 4] = 0
    labels[6, 6, 6] = 2
    labels[15:17, 15, 15] = 1
    labels[18, 18, 18] = 1
    return labels


def test_small_components_are_removed_and_counted() -> None:
    labels = labels_with_a_hole()
    result, removed = remove_small_components(labels, [1, 2], smaller_than=2)
    assert removed == {1: 1, 2: 1}
    assert int((result == 1).sum()) == int((labels == 1).sum()) - 1


def test_holes_are_filled_around_other_structures() -> None:
    labels = labels_with_a_hole()
    result, added = fill_holes(labels, [1, 2])
    assert added == {1: 2}
    assert result[6, 6, 6] == 2
    assert int((result == 1).sum()) == int((labels == 1).sum()) + 2


def test_postprocess_removes_components_before_it_fills_holes() -> None:
    """The voxel of 2 inside is removed first, so that its place is filled with 1 as well."""
    result, counts = postprocess(labels_with_a_hole(), [1, 2], smallest_voxels=2, holes=True)
    assert counts == {"island_voxels": {1: 1, 2: 1}, "filled_voxels": {1: 3}}
    assert (result[2:9, 2:9, 2:9] == 1).all()
    _, counts = postprocess(labels_with_a_hole(), [1, 2], largest_component=True)
    assert counts == {"cleaned_voxels": {1: 3}}
    unchanged, counts = postprocess(labels_with_a_hole(), [1, 2])
    assert counts == {}
    np.testing.assert_array_equal(unchanged, labels_with_a_hole())

"""Uncertainty: the slices to review, numbered as stored."""

from __future__ import annotations

import numpy as np
import pytest

from HiEndMAECore.inference.uncertainty import slices_to_review
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.preprocessing.pipeline import NetworkGrid


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
def test_review_slices_of_any_stack_are_numbered_as_stored(flipped: bool, uneven: bool) -> None:
    """A structure has an uncertain border at one height of the patient; the stack is stored upward or downward."""
    labels, entropy = np.zeros((20, 20, 40), np.uint8), np.zeros((20, 20, 40), np.float16)
    labels[5:15, 5:15, 5:35] = 1
    entropy[:, :, 30] = 1.0  # 60 mm above the grid's origin
    entropy[10, 10, 12] = 1.0  # inside the structure and not at its border: no reason to review
    step = -5.0 if flipped else 5.0
    affine = np.diag([2.0, 2.0, step, 1.0])
    affine[2, 3] = 75.0 if flipped else 0.0
    origins = None
    if uneven:
        heights = np.array([*range(0, 45, 5), *range(45, 80, 3)][:16], float)
        origins = np.stack([np.zeros(16), np.zeros(16), heights[::-1] if flipped else heights], axis=1)
    original = Geometry((20, 20, 16), affine, origins)
    slices = slices_to_review(labels, entropy, NetworkGrid(np.diag([2.0, 2.0, 2.0, 1.0]), original))
    assert len(slices) == 1
    z = affine[2, 3] + step * slices[0] if origins is None else origins[slices[0], 2]
    assert abs(z - 60.0) <= 2.5


def test_review_slices_of_an_empty_result_are_none() -> None:
    empty = np.zeros((8, 8, 8), np.uint8)
    grid = NetworkGrid(np.eye(4), Geometry((8, 8, 8), np.eye(4)))
    assert slices_to_review(empty, empty.astype(np.float16), grid) == []

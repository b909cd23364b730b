"""Scores of the label maps of a job."""

from __future__ import annotations

import numpy as np

from HiEndMAECore.evaluation.metrics import score_case
from HiEndMAECore.experiments.case_lists import LabelPair
from HiEndMAECore.experiments.scoring import score_arrays

IGNORE = 9


def test_scores_with_ignored_voxels_are_those_of_evaluate() -> None:
    """The cut through a structure at an ignored slice is no surface of it."""
    reference, prediction = np.zeros((2, 30, 30, 30), np.uint8)
    reference[5:25, 5:25, 5:25] = 1
    prediction[8:25, 5:25, 5:25] = 1
    reference[:, :, 11:] = IGNORE
    pairs = [LabelPair(1, 1, "cube", "cube")]
    found = score_arrays(prediction, reference, np.eye(4), pairs, ignore=IGNORE)["cube"]
    expected = score_case(prediction, reference, affine=np.eye(4), ignore=IGNORE)[1]
    assert found["hd95_mm"] == expected.hd95_mm
    assert found["dice"] == expected.dice
    assert found["reference_ml"] == round(expected.reference_ml, 3)

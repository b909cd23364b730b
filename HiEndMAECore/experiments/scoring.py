"""Scores of the label maps of a job, by the names of the target's structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore.evaluation.common_grid import align_to_common_grid
from HiEndMAECore.evaluation.metrics import score_case
from HiEndMAECore.io.readers import read_label_map

from .case_lists import LabelPair

_IGNORED = -1  # no label value
MISSED_ABOVE_ML = 2.0  # a structure of this volume that gets Dice 0 counts as missed


def score_files(
    prediction: Path, reference: Path, pairs: Sequence[LabelPair], *, ignore: int | None = None
) -> dict[str, dict[str, float | None]]:
    """Return {"dice", "hd95_mm", "reference_ml"} of each structure that the reference labels.

    Args:
        prediction: Label map with the values of the training data set.
        reference: Label map with the values of the target.
        pairs: The structures.
        ignore: Value of reference voxels that are not scored.
    """
    predicted, expected = (read_label_map(path, allow_empty=True) for path in (prediction, reference))
    predicted, expected = align_to_common_grid(predicted, expected)
    return score_arrays(predicted.array[0], expected.array[0], predicted.affine, pairs, ignore=ignore)


def score_arrays(
    prediction: np.ndarray,
    reference: np.ndarray,
    affine: np.ndarray,
    pairs: Sequence[LabelPair],
    *,
    ignore: int | None = None,
) -> dict[str, dict[str, float | None]]:
    """Return the scores of two label maps (X, Y, Z) on one grid; see `score_files`."""
    found = replace_values(prediction, {pair.source: pair.target for pair in pairs})
    true = replace_values(reference, {pair.target: pair.target for pair in pairs})
    if ignore is not None:
        true[reference == ignore] = _IGNORED
    scores = score_case(found, true, affine=affine, ignore=None if ignore is None else _IGNORED)
    names = {pair.target: pair.name for pair in pairs}
    return {
        names[value]: {"dice": score.dice, "hd95_mm": score.hd95_mm, "reference_ml": round(score.reference_ml, 3)}
        for value, score in scores.items()
        if score.status != "not_labelled"
    }


def replace_values(labels: np.ndarray, values: Mapping[int, int]) -> np.ndarray:
    """Return a label map (X, Y, Z) with other values; those that `values` lacks become background."""
    result = np.zeros(labels.shape, np.int32)
    for value, other in values.items():
        result[labels == value] = other
    return result


def list_missed(cases: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Return [case, structure] of each structure above `MISSED_ABOVE_ML` with Dice 0."""
    return [
        [case, structure]
        for case, structures in cases.items()
        for structure, score in structures.items()
        if not score["dice"] and score["reference_ml"] > MISSED_ABOVE_ML
    ]


def expected_by_target(expected: Mapping[str, float], pairs: Sequence[LabelPair]) -> dict[str, float]:
    """Return the expected Dice of a model by the target's names; structures that are joined there are left out."""
    joined = [pair.name for pair in pairs]
    return {
        pair.name: expected[pair.source_name]
        for pair in pairs
        if pair.source_name in expected and joined.count(pair.name) == 1
    }

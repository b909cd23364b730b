"""Quality: warnings about scans that differ from the training data."""

from __future__ import annotations

import pytest

from HiEndMAECore.inference.quality import compare_with_training_data

TRAINING = [
    {"spacing_mm": [1, 1, 5], "extent_mm": [300, 200, 250], "intensities": [[0.0, 0.5, 0.7]]},
    {"spacing_mm": [0.7, 0.7, 1], "extent_mm": [350, 250, 300], "intensities": [[0.0, 0.4, 0.7]]},
]
SIMILAR = {"spacing_mm": [0.8, 0.8, 4], "extent_mm": [320, 240, 400], "intensities": [[0.0, 0.6, 0.8]]}


def test_scan_similar_to_the_training_data_gives_no_warning() -> None:
    assert compare_with_training_data(SIMILAR, TRAINING) == []
    assert compare_with_training_data(SIMILAR, []) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"intensities": [[0.0, 0.0, 0.9]]}, "intensities_unlike"),
        ({"spacing_mm": [0.8, 0.8, 12]}, "spacing_unlike"),
        ({"extent_mm": [320, 240, 900]}, "field_of_view_unlike"),
    ],
)
def test_scan_different_from_the_training_data_gives_its_warning(change: dict, code: str) -> None:
    warnings = compare_with_training_data({**SIMILAR, **change}, TRAINING)
    assert [warning["code"] for warning in warnings] == [code]
    assert warnings[0]["message"]
    assert warnings[0]["advice"]

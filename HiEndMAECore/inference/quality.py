"""The quality of a result: how far a scan differs from the scans that the model was trained on.

A model's description keeps a fingerprint of each training case (`data.fingerprint.scan_fingerprint`): plain JSON with
spacing, extent and intensities, without pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MAX_SPACING_RATIO = 2.0  # of voxel edges
_MAX_EXTENT_RATIO = 2.0
_MAX_INTENSITY_DIFFERENCE = 0.25  # of the normalized range


def compare_with_training_data(
    fingerprint: Mapping[str, Any], training_fingerprints: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """Return warnings where a scan differs from all scans that the model was trained on.

    Args:
        fingerprint: {"spacing_mm": [R, A, S], "extent_mm": [R, A, S] of the body, "intensities": [[5th, 50th, 95th
            percentile] of each channel]} of the scan.
        training_fingerprints: The same of each training case; empty if the model does not know them.

    Returns:
        {"code", "message", "advice"} for each difference: `spacing_unlike`, `field_of_view_unlike`, `intensities_unlike`.
    """
    if not training_fingerprints:
        return []
    warnings = [
        _compare_spacing(fingerprint, training_fingerprints),
        _compare_extent(fingerprint, training_fingerprints),
        _compare_intensities(fingerprint, training_fingerprints),
    ]
    return [warning for warning in warnings if warning is not None]


def _compare_spacing(scan: Mapping[str, Any], training: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    closest, ratio = _closest(scan["spacing_mm"], [case["spacing_mm"] for case in training])
    if not _exceeds(ratio, _MAX_SPACING_RATIO):
        return None
    return {
        "code": "spacing_unlike",
        "message": f"Its voxels ({_mm(scan['spacing_mm'])} mm) differ from those of the training scans ({closest} mm).",
        "advice": "Check small structures, and the first and last slices of each structure.",
    }


def _compare_extent(scan: Mapping[str, Any], training: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    closest, ratio = _closest(scan["extent_mm"], [case["extent_mm"] for case in training])
    if not _exceeds(ratio, _MAX_EXTENT_RATIO):
        return None
    return {
        "code": "field_of_view_unlike",
        "message": f"It shows {_mm(scan['extent_mm'])} mm of the body; the model was trained on {closest} mm.",
        "advice": "Expect false findings in regions that the training scans do not show, and cut structures at the edges.",
    }


def _compare_intensities(scan: Mapping[str, Any], training: Sequence[Mapping[str, Any]]) -> dict[str, str] | None:
    difference = min(
        (
            float(np.abs(np.subtract(scan["intensities"], case["intensities"])).max())
            for case in training
            if len(case["intensities"]) == len(scan["intensities"])
        ),
        default=0.0,
    )
    if difference <= _MAX_INTENSITY_DIFFERENCE:
        return None
    return {
        "code": "intensities_unlike",
        "message": f"Its intensities differ by {difference:.0%} of the range from those of the training scans.",
        "advice": "Is this another contrast phase, sequence or part of the body? Check the result before you use it.",
    }


def _closest(values: Sequence[float], references: Sequence[Sequence[float]]) -> tuple[str, float]:
    """Return the closest reference as text, and the logarithm of its largest ratio to `values` along any axis."""
    ratios = [float(np.abs(np.log(np.divide(values, reference))).max()) for reference in references]
    index = int(np.argmin(ratios))
    return _mm(references[index]), ratios[index]


def _exceeds(log_ratio: float, limit: float) -> bool:
    return log_ratio > math.log(limit) + 1e-9


def _mm(edges: Sequence[float]) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges)

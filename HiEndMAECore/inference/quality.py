"""How far to trust a result: sureness of each structure, slices to look at first, scans unlike what a model learned from.

Facts of a scan (plain JSON, no pixels) are kept in a model's description for its teaching scans, and compared here:

    {"spacing_mm": [R, A, S], "extent_mm": [R, A, S] of the body, "intensities": [[5th, 50th, 95th percentile] a channel]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_COARSER = 2.0  # voxel edges that differ by this factor from every teaching scan's are told
_BRIGHTER = 0.25  # of the normalised range
_LARGER = 2.0  # field of view


def compare_with_training_data(facts: Mapping[str, Any], taught: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Warnings ({"code", "message", "advice"}) where a scan is far from all of the scans that a model learned from."""
    if not taught:
        return []
    message = []
    spacing, known = _far(facts["spacing_mm"], [scan["spacing_mm"] for scan in taught], _COARSER)
    if spacing:
        message.append(
            {
                "code": "spacing_unlike",
                "message": f"Its voxels ({_mm(facts['spacing_mm'])} mm) are unlike those the model learned from ({known} mm).",
                "advice": "Look closely at small structures and at the first and last slices of each.",
            }
        )
    extent, known = _far(facts["extent_mm"], [scan["extent_mm"] for scan in taught], _LARGER)
    if extent:
        message.append(
            {
                "code": "field_of_view_unlike",
                "message": f"It shows {_mm(facts['extent_mm'])} mm of the body; the model learned from {known} mm.",
                "advice": "Expect false findings where the model never looked, and cut structures at the edges.",
            }
        )
    apart = min(
        (
            float(np.abs(np.subtract(facts["intensities"], scan["intensities"])).max())
            for scan in taught
            if len(scan["intensities"]) == len(facts["intensities"])
        ),
        default=0.0,
    )
    if apart > _BRIGHTER:
        message.append(
            {
                "code": "intensities_unlike",
                "message": f"Its intensities differ by {apart:.0%} of the range from those the model learned from.",
                "advice": "Another contrast phase, sequence or part of the body? Check the result before you use it.",
            }
        )
    return message


def _far(mine: Sequence[float], theirs: Sequence[Sequence[float]], factor: float) -> tuple[bool, str]:
    """Is any axis off by more than `factor` from every one of `theirs`? And the closest, as text."""
    off = [float(np.abs(np.log(np.divide(mine, other))).max()) for other in theirs]
    closest = int(np.argmin(off))
    return off[closest] > math.log(factor) + 1e-9, _mm(theirs[closest])


def _mm(edges: Sequence[float]) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges)

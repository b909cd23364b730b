"""Scores of one label map against another: overlap, surface distances in mm, and an interval for the mean.

Everything is computed on the native grid, inside the bounding box of both masks. A surface voxel is a voxel of the mask
with at least one of its six neighbours outside (the border of the volume counts as outside). The definitions are those
of `monai.metrics` without sub-voxels:

* Dice: twice the common voxels over the voxels of both.
* HD95: of the distances from each surface voxel to the nearest surface voxel of the other mask, the 95th percentile in
  each direction (linear interpolation), and the larger of the two; also the choice of DeepMind's surface-distance.
* NSD (surface Dice): the share of all surface voxels, of both masks together, whose distance is at most the tolerance;
  Nikolov et al., arXiv 1809.04430, with voxels counted instead of areas.

Distances are exact: a k-d tree of surface voxels in mm, which also holds for sheared grids (gantry tilt).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import SCORES, STATUSES, StructureScore, not_labelled


def summarize(cases: Sequence[Mapping[int, StructureScore]], values: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
    """Means over `cases` of the structures `values`, and the mean of those means, as plain JSON values.

    A structure counts in the cases whose reference labels it; a missed one counts with Dice 0 and NSD 0 and is left out
    of the mean of HD95. `false_positive_ml` is what was predicted where references label nothing, all cases together.
    """
    table = [[case.get(value, not_labelled(value)) for value in values] for case in cases]
    structures = []
    for column, value in enumerate(values):
        scores = [row[column] for row in table]
        counts = {status: sum(score.status == status for score in scores) for status in STATUSES}
        structures.append(
            {
                "value": value,
                "n": counts["scored"] + counts["missed"],
                "missed": counts["missed"],
                "not_labelled": counts["not_labelled"],
                "false_positive_ml": sum(score.prediction_ml for score in scores if score.status == "not_labelled"),
                **{name: _mean([[getattr(score, name)] for score in scores], seed) for name in SCORES},
            }
        )
    overall = {name: _mean([[getattr(score, name) for score in row] for row in table], seed) for name in SCORES}
    return {"structures": structures, "overall": overall}


def bootstrap_interval(
    values: Sequence[float | None] | Sequence[Sequence[float | None]] | np.ndarray, *, seed: int = 0, draws: int = 10000
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the mean over cases; None for fewer than three cases.

    values: (N,) one value a case, or (N, S) one a case and structure; None or NaN where there is none. Cases are drawn
    with replacement; the mean of (N, S) is the mean of the structures' means, as in the report. From fewer than three
    values the bootstrap can only repeat them. Same values and seed, same interval.
    """
    table = np.asarray(values, dtype=np.float64)  # None becomes NaN
    table = table[:, None] if table.ndim == 1 else table
    present = ~np.isnan(table)
    table, present = table[present.any(axis=1)], present[present.any(axis=1)]
    cases = len(table)
    if cases < 3:
        return None
    # How often each case is drawn, (draws, N): a matrix product then gives all means without a (draws, N, S) table.
    times = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1.0 / cases), size=draws).astype(np.float64)
    sums, counts = times @ np.where(present, table, 0.0), times @ present.astype(np.float64)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    ends = np.percentile(np.nanmean(means, axis=1), [2.5, 97.5])
    low, high = np.clip(ends, np.nanmin(table), np.nanmax(table))  # rounding must not make a Dice above 1
    return float(low), float(high)


def _mean(rows: Sequence[Sequence[float | None]], seed: int) -> dict[str, Any]:
    """{mean, interval, n} of `rows` (N cases, S structures): mean of the structures' means; n cases have a value."""
    rows = [row for row in rows if any(value is not None for value in row)]
    columns = [[value for value in column if value is not None] for column in zip(*rows)]
    means = [sum(column) / len(column) for column in columns if column]
    mean = sum(means) / len(means) if means else None
    return {"mean": mean, "interval": bootstrap_interval(rows, seed=seed), "n": len(rows)}

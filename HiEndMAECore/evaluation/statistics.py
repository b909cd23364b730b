"""Means over cases and structures, and bootstrap intervals of the means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .metrics import SCORES, STATUSES, StructureScore, not_labelled


def summarize(cases: Sequence[Mapping[int, StructureScore]], values: Sequence[int], *, seed: int = 0) -> dict[str, Any]:
    """Return the means over the cases for each structure, and the mean of these means, as plain JSON values.

    A structure counts in the cases whose reference labels it. A missed structure counts with Dice 0 and NSD 0; it has no
    HD95. `false_positive_ml` is the predicted volume in the cases whose reference does not label the structure.

    Args:
        cases: The scores of each case by label value.
        values: Label values of the structures, in the order of the result.
        seed: Seed of the bootstrap intervals.

    Returns:
        "structures", one row for each value, and "overall"; every mean is {"mean", "interval", "n"}.
    """
    table = [[case.get(value, not_labelled(value)) for value in values] for case in cases]
    structures = []
    for index, value in enumerate(values):
        scores = [row[index] for row in table]
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
    """Return the 95 % percentile bootstrap interval of the mean over cases.

    Cases are drawn with replacement. The mean of (N, S) values is the mean of the structures' means, as in the report. The
    same values and seed give the same interval.

    Args:
        values: (N,) one value for each case, or (N, S) one for each case and structure; None or NaN where there is none.
        seed: Seed of the draws.
        draws: Number of bootstrap samples.

    Returns:
        (low, high); None for fewer than three cases, which the bootstrap can only repeat.
    """
    table = np.asarray(values, dtype=np.float64)  # None becomes NaN
    table = table[:, None] if table.ndim == 1 else table
    present = ~np.isnan(table)
    table, present = table[present.any(axis=1)], present[present.any(axis=1)]
    cases = len(table)
    if cases < 3:
        return None
    # How often each case is drawn, (draws, N): a matrix product then gives all means without a (draws, N, S) array.
    times = np.random.default_rng(seed).multinomial(cases, np.full(cases, 1.0 / cases), size=draws).astype(np.float64)
    sums, counts = times @ np.where(present, table, 0.0), times @ present.astype(np.float64)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    ends = np.percentile(np.nanmean(means, axis=1), [2.5, 97.5])
    low, high = np.clip(ends, np.nanmin(table), np.nanmax(table))  # rounding must not give a Dice above 1
    return float(low), float(high)


def _mean(rows: Sequence[Sequence[float | None]], seed: int) -> dict[str, Any]:
    """Return {"mean", "interval", "n"} of (N cases, S structures) values: the mean of the structures' means, its interval,
    and the number of cases with a value."""
    rows = [row for row in rows if any(value is not None for value in row)]
    columns = [[value for value in column if value is not None] for column in zip(*rows)]
    means = [sum(column) / len(column) for column in columns if column]
    mean = sum(means) / len(means) if means else None
    return {"mean": mean, "interval": bootstrap_interval(rows, seed=seed), "n": len(rows)}

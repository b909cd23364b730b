"""Statistics: means over cases and structures, and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from HiEndMAECore.evaluation import metrics
from HiEndMAECore.evaluation.statistics import bootstrap_interval, summarize


def test_summarize_skips_not_labelled_and_counts_missed_structures() -> None:
    def score(value: int, status: str, dice: float | None, hd95: float | None) -> metrics.StructureScore:
        return metrics.StructureScore(value, status, dice, hd95, dice, 1.0, 0.25)

    cases = [
        {1: score(1, "scored", 0.8, 2.0), 2: score(2, "not_labelled", None, None)},
        {1: score(1, "missed", 0.0, None), 2: score(2, "scored", 0.6, 4.0)},
        {1: score(1, "scored", 0.7, 3.0)},
    ]
    summary = summarize(cases, [1, 2, 9])
    first, second, third = summary["structures"]
    assert (first["n"], first["missed"], first["not_labelled"]) == (3, 1, 0)
    assert (first["dice"]["mean"], first["dice"]["n"]) == (pytest.approx(0.5), 3)
    assert (first["hd95_mm"]["mean"], first["hd95_mm"]["n"]) == (2.5, 2)
    assert (second["n"], second["missed"], second["not_labelled"], second["false_positive_ml"]) == (1, 0, 2, 0.25)
    assert second["dice"] == {"mean": 0.6, "interval": None, "n": 1}
    assert (third["n"], third["not_labelled"], third["dice"]["mean"]) == (0, 3, None)
    assert summary["overall"]["dice"]["mean"] == pytest.approx((0.5 + 0.6) / 2)  # a structure counts once
    low, high = summary["overall"]["dice"]["interval"]
    assert 0.0 <= low <= 0.55 <= high <= 0.8


def test_bootstrap_interval_matches_drawing_case_by_case() -> None:
    values = np.random.default_rng(3).beta(8, 2, size=(20, 2))
    values[[0, 3], 1] = np.nan
    rng = np.random.default_rng(99)
    means = [np.nanmean(values[rng.integers(20, size=20)], axis=0).mean() for _ in range(20000)]
    found = bootstrap_interval(values)
    np.testing.assert_allclose(found, np.percentile(means, [2.5, 97.5]), atol=2e-3)  # two sets of random draws
    assert bootstrap_interval(values) == found
    assert bootstrap_interval(values, seed=1) != found
    assert bootstrap_interval([None, 0.5, 0.5, 0.5]) == (0.5, 0.5)
    assert bootstrap_interval([0.1, None, 0.9]) is None

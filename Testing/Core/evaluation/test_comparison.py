"""Paired comparisons: the permutation test against brute force, intervals, and what the summary of a table counts."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from HiEndMAECore.errors import UsageError
from HiEndMAECore.evaluation.comparison import mean_with_interval, paired_difference, permutation_p
from HiEndMAECore.evaluation.comparison_summary import summarize_table
from HiEndMAECore.evaluation.comparison_table import format_summary


def brute_force_p(strata: list[list[float]]) -> float:
    """Return the exact p by enumerating the signs of every case, one by one."""

    def statistic(signs: tuple[int, ...]) -> float:
        remaining, means = iter(signs), []
        for stratum in strata:
            means.append(sum(next(remaining) * value for value in stratum) / len(stratum))
        return abs(sum(means) / len(means))

    count = sum(map(len, strata))
    observed = statistic((1,) * count)
    patterns = list(itertools.product((-1, 1), repeat=count))
    return sum(statistic(signs) >= observed - 1e-12 for signs in patterns) / len(patterns)


@pytest.mark.parametrize(
    "strata",
    [
        [[0.1, 0.2, 0.05]],
        [[0.1, -0.02, 0.3], [0.04, 0.01, 0.2, -0.1]],
        [[0.1] * 4, [-0.1] * 4],
        [[0.0, 0.0]],
    ],
)
def test_permutation_p_of_few_cases_equals_brute_force(strata: list[list[float]]) -> None:
    assert permutation_p(strata) == pytest.approx(brute_force_p(strata), abs=1e-12)


def test_permutation_p_of_drawn_signs_is_close_to_the_exact_value() -> None:
    rng = np.random.default_rng(5)
    strata = [list(rng.normal(0.02, 0.1, 12)), list(rng.normal(0.06, 0.1, 6))]
    assert permutation_p(strata, seed=1) == pytest.approx(brute_force_p(strata), abs=5e-3)
    assert permutation_p(strata, seed=1) == permutation_p(strata, seed=1)
    assert permutation_p([[0.5] * 30]) == pytest.approx(1 / 100_001)  # the observed signs are one of the patterns


def test_permutation_p_gives_each_region_the_same_weight() -> None:
    """A region of many cases without an effect does not hide one of few cases with an effect."""
    few = [0.3, 0.28, 0.33, 0.31, 0.3, 0.29]
    many = list(np.random.default_rng(0).normal(0, 0.01, 200))
    assert permutation_p([few, many]) < 0.05


def test_permutation_p_under_the_null_hypothesis_is_uniform() -> None:
    rng = np.random.default_rng(2)
    found = [permutation_p([rng.normal(size=6), rng.normal(size=3)]) for _ in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_mean_with_interval_covers_the_true_mean() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(200):
        low, high = mean_with_interval(list(rng.beta(6, 3, 25)), seed=0)["interval"]
        covered += low <= 6 / 9 <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert mean_with_interval([], seed=0) == {"mean": None, "interval": None, "n": 0}


def test_paired_difference_counts_common_cases_and_gives_p_from_eight_on() -> None:
    first = {f"c{index}": 0.5 + 0.01 * index for index in range(8)}
    other = {case: value - 0.1 for case, value in first.items()}
    found = paired_difference({**first, "alone": 0.9}, other)
    assert (found.n, found.wins, found.ties, found.losses) == (8, 8, 0, 0)
    assert found.mean == pytest.approx(0.1)
    assert found.p == pytest.approx(2 / 2**8)
    other.pop("c0")
    assert paired_difference(first, other).p is None
    distances = paired_difference(
        {"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 5.0, "b": 2.0, "c": 0.5}, larger_is_better=False
    )
    assert (distances.wins, distances.ties, distances.losses) == (1, 1, 1)


def line(arm: str, dice: dict[str, dict[str, float]], **values: Any) -> dict[str, Any]:
    """Return a line of a table with one volume for all structures."""
    cases = {
        case: {name: {"dice": d, "hd95_mm": None if d == 0 else 5.0, "reference_ml": 10.0} for name, d in of.items()}
        for case, of in dice.items()
    }
    fields = {
        "kind": "unshifted", "arm": arm, "region": "neck", "training_case": "t1", "seed": 0, "split": "tune",
        "budget": {"steps": 5}, "expected": {}, "cases": cases, "steps": 5, "seconds_per_step": 0.2, "cpu_seconds": 10.0,
        "apply_seconds_per_scan": 2.0, "processor": "P", "processor_flags": ["avx2"], "threads": 1,
        "engine": {"version": "1", "commit": "abc"}, "digest": "d", "uses_targets": False,
        "missed": [[case, name] for case, of in dice.items() for name, d in of.items() if d == 0],
    }  # fmt: skip
    return {**fields, **values}


def test_summary_takes_the_mean_over_structures_then_over_runs() -> None:
    """A case that labels one structure weighs as much as one that labels two."""
    lines = [
        line("a", {"c1": {"s": 0.8, "t": 0.4}, "c2": {"s": 0.5}}, expected={"s": 0.9}),
        line("a", {"c1": {"s": 0.6, "t": 0.0}, "c2": {"s": 0.7}}, training_case="t2", expected={"s": 0.5}),
    ]
    summary = summarize_table([{**lines[1], "digest": "e"}, lines[0], {**lines[1], "uses_targets": True}])
    (row,) = summary["regions"]
    assert (row["settings"], row["uses_targets"]) == (2, True)
    assert any("learned with the scans" in text for text in format_summary(summary))
    assert row["dice"]["mean"] == pytest.approx(((0.6 + 0.3) / 2 + (0.5 + 0.7) / 2) / 2)
    assert row["dice"]["n"] == 2
    assert (row["training_cases"], row["seeds"]) == (2, 1)
    assert (row["missed"], row["missed_structures"], row["without_hd95"]) == (1, {"t": 1}, 1)
    assert row["expected_dice"] == pytest.approx(0.7)
    assert row["true_dice_of_expected"] == pytest.approx(0.65)  # s: 0.65 on both models
    assert row["expectation_error"] == pytest.approx((0.25 + 0.15) / 2)


def test_summary_compares_over_shared_training_cases_and_seeds() -> None:
    lines = [
        line("base", {"c1": {"s": 0.5}}),
        line("base", {"c1": {"s": 0.1}}, training_case="t2"),  # the other arm was not trained on it
        line("new", {"c1": {"s": 0.6}}),
        line("new", {"c1": {"s": 0.9}}, seed=1),
        line("new", {"d1": {"s": 0.4}}, region="heart"),
    ]
    summary = summarize_table(lines, baseline="base")
    (difference,) = summary["differences"]
    assert difference["mean"] == pytest.approx(0.1)
    assert summary["tests"][0]["regions"] == ["neck"]
    assert any("stratified permutation test" in text for text in format_summary(summary))
    with pytest.raises(UsageError, match="no arm 'absent'") as raised:
        summarize_table(lines, baseline="absent")
    assert raised.value.code == "baseline_unknown"


def test_summary_of_shifted_copies_separates_weak_and_partial_structures() -> None:
    def score(dice: float, unshifted: float, retained: float) -> dict[str, float]:
        return {"dice": dice, "unshifted_dice": unshifted, "retained": retained}

    cases = {"c1": {"good": 0.9, "fair": 0.8, "weak": 0.1}, "c2": {"good": 0.9, "fair": 0.8, "weak": 0.1}}
    copies = {
        "tilt": {
            "c1": {
                "structures": {
                    "good": score(0.8, 0.9, 1.0),
                    "fair": score(0.7, 0.8, 0.3),
                    "weak": score(0.0, 0.1, 1.0),
                }
            },
            "c2": {"structures": {"good": score(0.88, 0.9, 1.0), "fair": score(0.82, 0.8, 0.9)}},
        }
    }
    summary = summarize_table([line("a", cases, kind="shifted", copies=copies)])
    (row,) = summary["shifted"]
    assert row["structures"] == {"good": pytest.approx(-0.06), "fair": pytest.approx(0.02)}
    assert (row["worst"], row["difference"]) == ("good", pytest.approx(-0.02))
    assert row["other_structures"] == {"weak": pytest.approx(-0.1)}
    assert (row["partial"], row["partial_difference"]) == (1, pytest.approx(-0.1))
    assert any("tilt" in text for text in format_summary(summary))

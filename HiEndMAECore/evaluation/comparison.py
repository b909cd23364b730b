"""Paired comparisons: differences over cases with a bootstrap interval, and a stratified permutation test."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .statistics import bootstrap_interval

MIN_CASES_FOR_P = 8  # with fewer cases a p-value says little
_MAX_EXACT_CASES = 16  # 2^16 sign patterns
_DRAWS = 100_000
_BLOCK_DRAWS = 10_000
_ROUNDING = 1e-12


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two methods over the cases that both have.

    Attributes:
        mean: Mean of the differences, the first method less the other; None without a common case.
        interval: 95 % bootstrap interval of it; None for fewer than three cases.
        n: Number of cases.
        wins: Cases in which the first method is better.
        ties: Cases in which both are equal.
        losses: The others.
        p: Two-sided p of the permutation test; None for fewer than `MIN_CASES_FOR_P` cases.
    """

    mean: float | None
    interval: tuple[float, float] | None
    n: int
    wins: int
    ties: int
    losses: int
    p: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def case_differences(first: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Return the difference of each case that both methods have, the first less the other."""
    return {case: first[case] - other[case] for case in first if case in other}


def paired_difference(
    first: Mapping[str, float], other: Mapping[str, float], *, larger_is_better: bool = True, seed: int = 0
) -> PairedDifference:
    """Compare two methods case by case.

    Args:
        first: A score of each case.
        other: The same of the other method; cases that one of them lacks are left out.
        larger_is_better: False for distances.
        seed: Seed of the bootstrap and of the permutation test.
    """
    values = np.array(list(case_differences(first, other).values()))
    better = values if larger_is_better else -values
    n = len(values)
    return PairedDifference(
        mean=float(values.mean()) if n else None,
        interval=bootstrap_interval(values, seed=seed) if n else None,
        n=n,
        wins=int((better > 0).sum()),
        ties=int((values == 0).sum()),
        losses=int((better < 0).sum()),
        p=permutation_p([values], seed=seed) if n >= MIN_CASES_FOR_P else None,
    )


def permutation_p(strata: Sequence[Sequence[float] | np.ndarray], *, seed: int = 0) -> float:
    """Return the two-sided p of a stratified permutation test on paired differences.

    Under the null hypothesis the two methods are exchangeable in each case, so that each difference may have either sign.
    The statistic is the mean over strata (regions) of the mean over the cases of a stratum: every region has the same
    weight, however many cases it has. All sign patterns are tried for up to 16 cases in all; otherwise 100,000 are drawn,
    and the observed pattern counts as one of them.

    Args:
        strata: The differences of the cases of each stratum; empty ones are left out.
        seed: Seed of the draws.

    Returns:
        p; 1 when there is no case.
    """
    filled = [np.asarray(stratum, dtype=np.float64) for stratum in strata if len(stratum)]
    if not filled:
        return 1.0
    # The statistic is a weighted sum of the signs.
    weighted = np.concatenate([stratum / (len(stratum) * len(filled)) for stratum in filled])
    observed = abs(weighted.sum()) - _ROUNDING
    if len(weighted) <= _MAX_EXACT_CASES:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(weighted))))
        return float((np.abs(signs @ weighted) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for _ in range(_DRAWS // _BLOCK_DRAWS):
        signs = rng.choice((-1.0, 1.0), size=(_BLOCK_DRAWS, len(weighted)))
        extreme += int((np.abs(signs @ weighted) >= observed).sum())
    return (1 + extreme) / (1 + _DRAWS)


def mean_with_interval(values: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Return {"mean", "interval", "n"} of one value a case; the mean is None without a case."""
    interval = bootstrap_interval(values, seed=seed) if len(values) else None
    return {"mean": float(np.mean(values)) if len(values) else None, "interval": interval, "n": len(values)}

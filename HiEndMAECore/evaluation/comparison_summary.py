"""Summary of a table of results (`experiments.table`): region x arm, differences to a baseline, and shifted copies.

A line of the table is one arm, trained on one case with one seed and applied to the cases of one region. Per case the mean is
taken over its structures, then over training cases and seeds; the cases are the sample.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from HiEndMAECore.errors import UsageError

from .comparison import case_differences, mean_with_interval, paired_difference, permutation_p

Line = Mapping[str, Any]
_MIN_RETAINED = 0.5  # structures of which a copy shows less are reported apart


def summarize_table(lines: Sequence[Line], *, baseline: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Return the summary of a table as plain JSON values.

    Args:
        lines: Finished lines of one split and one budget.
        baseline: Arm to compare the others with, over the same training cases, seeds and test cases.
        seed: Seed of the intervals and tests.

    Returns:
        "regions": rows of each region and arm; "differences" and "tests" where there is a baseline; "shifted" where the
        table has shifted copies.

    Raises:
        UsageError: `baseline_unknown`.
    """
    arms = list(dict.fromkeys(line["arm"] for line in lines))
    regions = list(dict.fromkeys(line["region"] for line in lines))
    if baseline is not None and baseline not in arms:
        raise UsageError("baseline_unknown", f"The table has no arm '{baseline}'.", f"Known: {', '.join(arms)}.")
    grouped = _group(_newest_kind(lines))
    settings = {key: {line["digest"] for line in group} for key, group in _group(lines).items()}
    rows = [
        {**_summarize_arm(region, arm, grouped[region, arm], seed), "settings": len(settings[region, arm])}
        for region in regions
        for arm in arms
        if (region, arm) in grouped
    ]
    others = [arm for arm in arms if arm != baseline] if baseline else []
    shifted = [line for line in lines if line.get("copies")]
    return {
        "format": 1,
        "split": lines[0]["split"],
        "budget": next((line["budget"] for line in lines if line["budget"]), None),
        "machines": _list_machines(lines),
        "engines": sorted({f"{line['engine']['version']} {line['engine']['commit']}" for line in lines}),
        "baseline": baseline,
        "regions": rows,
        "differences": [
            row for arm in others for row in _compare_arm(arm, str(baseline), regions, grouped, seed) if row["n"]
        ],
        "tests": [_test_arm(arm, str(baseline), regions, grouped, seed) for arm in others],
        "shifted": [row for group in _group(shifted).values() for row in _summarize_shifts(group)],
    }


def _newest_kind(lines: Iterable[Line]) -> list[Line]:
    """Return one line for each arm, region, training case and seed. A job on shifted copies also has the plain results."""
    chosen: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        key = (line["region"], line["arm"], line["training_case"], line["seed"])
        if key not in chosen or chosen[key]["kind"] == "shifted" or line["kind"] == "unshifted":
            chosen[key] = line
    return list(chosen.values())


def _group(lines: Iterable[Line]) -> dict[tuple[str, str], list[Line]]:
    """Return the lines of each region and arm."""
    groups: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        groups[line["region"], line["arm"]].append(line)
    return dict(groups)


def _case_means(lines: Sequence[Line], score: str) -> dict[str, float]:
    """Return the mean of a score over the structures of each case, then over the lines."""
    values: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for case, structures in line["cases"].items():
            present = [row[score] for row in structures.values() if row[score] is not None]
            if present:
                values[case].append(statistics.fmean(present))
    return {case: statistics.fmean(found) for case, found in values.items()}


def _summarize_arm(region: str, arm: str, lines: Sequence[Line], seed: int) -> dict[str, Any]:
    """Return the row of one arm in one region."""
    scored = [row for line in lines for case in line["cases"].values() for row in case.values()]
    missed: dict[str, int] = defaultdict(int)
    for line in lines:
        for _, structure in line["missed"]:
            missed[structure] += 1
    expected, true = _expected_and_true(lines)
    return {
        "region": region,
        "arm": arm,
        "uses_targets": any(line["uses_targets"] for line in lines),
        "training_cases": len({line["training_case"] for line in lines}),
        "seeds": len({line["seed"] for line in lines}),
        "dice": mean_with_interval(list(_case_means(lines, "dice").values()), seed=seed),
        "hd95_mm": mean_with_interval(list(_case_means(lines, "hd95_mm").values()), seed=seed),
        "without_hd95": sum(row["hd95_mm"] is None for row in scored),
        "missed": sum(missed.values()),
        "missed_structures": dict(missed),
        "scores": len(scored),
        "structures": _structure_means(lines),
        "expected_dice": statistics.fmean(expected) if expected else None,
        "true_dice_of_expected": statistics.fmean(true) if true else None,
        "expectation_error": statistics.fmean(abs(a - b) for a, b in zip(expected, true)) if expected else None,
        "steps": _mean_of(lines, "steps"),
        "seconds_per_step": _mean_of(lines, "seconds_per_step"),
        "cpu_seconds": _mean_of(lines, "cpu_seconds"),
        "apply_seconds_per_scan": _mean_of(lines, "apply_seconds_per_scan"),
    }


def _structure_means(lines: Sequence[Line]) -> dict[str, float]:
    """Return the mean Dice of each structure over cases and lines."""
    values: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for case in line["cases"].values():
            for structure, row in case.items():
                values[structure].append(row["dice"])
    return {structure: statistics.fmean(found) for structure, found in values.items()}


def _expected_and_true(lines: Sequence[Line]) -> tuple[list[float], list[float]]:
    """Return the expected and the true Dice of each structure of each model."""
    expected, true = [], []
    for line in lines:
        means = _structure_means([line])
        for structure, value in line["expected"].items():
            if structure in means:
                expected.append(value)
                true.append(means[structure])
    return expected, true


def _mean_of(lines: Sequence[Line], key: str) -> float | None:
    values = [line[key] for line in lines if line[key] is not None]
    return statistics.fmean(values) if values else None


def _shared(first: Sequence[Line], other: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """Return the lines of both arms whose training case and seed the other arm has too."""
    keys = [{(line["training_case"], line["seed"]) for line in lines} for lines in (first, other)]
    common = keys[0] & keys[1]
    return tuple(  # type: ignore[return-value]
        [line for line in lines if (line["training_case"], line["seed"]) in common] for lines in (first, other)
    )


def _compare_arm(
    arm: str, baseline: str, regions: Sequence[str], grouped: Mapping[tuple[str, str], Sequence[Line]], seed: int
) -> list[dict[str, Any]]:
    """Return the difference of an arm to the baseline in each region."""
    rows = []
    for region in regions:
        first, other = _shared(grouped.get((region, arm), ()), grouped.get((region, baseline), ()))
        difference = paired_difference(_case_means(first, "dice"), _case_means(other, "dice"), seed=seed)
        rows.append({"region": region, "arm": arm, "runs": len(first), **difference.to_json()})
    return rows


def _test_arm(
    arm: str, baseline: str, regions: Sequence[str], grouped: Mapping[tuple[str, str], Sequence[Line]], seed: int
) -> dict[str, Any]:
    """Return the stratified permutation test of an arm against the baseline over all regions that have both."""
    strata = {}
    for region in regions:
        first, other = _shared(grouped.get((region, arm), ()), grouped.get((region, baseline), ()))
        differences = case_differences(_case_means(first, "dice"), _case_means(other, "dice"))
        if differences:
            strata[region] = list(differences.values())
    means = [statistics.fmean(values) for values in strata.values()]
    return {
        "arm": arm,
        "regions": list(strata),
        "n": sum(map(len, strata.values())),
        "mean": statistics.fmean(means) if means else None,
        "p": permutation_p(list(strata.values()), seed=seed) if strata else None,
    }


def _summarize_shifts(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the row of each kind of shifted copy, of one arm in one region.

    A structure counts whose mean Dice on the unchanged scans is at or above the median over the structures. Of its rows those
    count in which the copy shows at least half of it.
    """
    means = _structure_means(lines)
    median = statistics.median(means.values()) if means else 0.0
    chosen = [structure for structure, mean in means.items() if mean >= median]
    rows = []
    for copy in dict.fromkeys(name for line in lines for name in line["copies"]):
        scores = [
            (structure, row)
            for line in lines
            for case in line["copies"].get(copy, {}).values()
            for structure, row in case["structures"].items()
        ]
        whole = [(structure, row) for structure, row in scores if row["retained"] >= _MIN_RETAINED]
        partial = [row for _, row in scores if row["retained"] < _MIN_RETAINED]
        differences = _mean_differences(whole, lambda structure: structure in chosen)
        rows.append(
            {
                "region": lines[0]["region"],
                "arm": lines[0]["arm"],
                "copy": copy,
                "structures": differences,
                "difference": statistics.fmean(differences.values()) if differences else None,
                "worst": min(differences, key=lambda name: differences[name]) if differences else None,
                "other_structures": _mean_differences(whole, lambda structure: structure not in chosen),
                "partial": len(partial),
                "partial_difference": statistics.fmean(_difference(row) for row in partial) if partial else None,
            }
        )
    return rows


def _mean_differences(
    scores: Sequence[tuple[str, Mapping[str, Any]]], is_chosen: Callable[[str], bool]
) -> dict[str, float]:
    """Return the mean difference of each chosen structure, the copy less the unchanged scan."""
    values: dict[str, list[float]] = defaultdict(list)
    for structure, row in scores:
        if is_chosen(structure):
            values[structure].append(_difference(row))
    return {structure: statistics.fmean(found) for structure, found in values.items()}


def _difference(row: Mapping[str, Any]) -> float:
    return row["dice"] - row["unshifted_dice"]


def _list_machines(lines: Iterable[Line]) -> list[str]:
    """Return the processors of a table, with instruction sets and threads."""
    return sorted(
        {f"{line['processor']} ({', '.join(line['processor_flags'])}), {line['threads']} thread(s)" for line in lines}
    )

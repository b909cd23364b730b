"""Comparison of finished evaluation reports over their common cases and structures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.io.bounded_json import parse_json_object

from .comparison import paired_difference
from .metrics import SCORES

_VOLUME_TOLERANCE = 1e-3  # reference volumes may differ by so much, as a share and in ml
_DIGEST = "reference_sha256"  # by case, in reports that have it
Rows = dict[tuple[str, str], Mapping[str, Any]]  # (case, structure) -> row


def compare_reports(paths: Sequence[Path], *, seed: int = 0) -> dict[str, Any]:
    """Compare the first report with each of the others.

    Per case the mean is taken over the structures that all reports have; distances only where both are defined.

    Args:
        paths: Reports of `evaluate`, two or more.
        seed: Seed of the intervals and tests.

    Returns:
        Plain JSON values; "comparisons" has a row for each other report and score, the first report less the other.

    Raises:
        UsageError: `reports_too_few`.
        InputError: `report_unreadable`, `tolerances_differ`, `ignored_values_differ`, `references_differ` or `no_common_case`.
    """
    if len(paths) < 2:
        raise UsageError("reports_too_few", "A comparison needs two reports.", "Give --reports A.json B.json.")
    reports = [_read_report(path) for path in paths]
    for path, report in zip(paths[1:], reports[1:]):
        _check_comparable(paths[0], reports[0], path, report)
    rows = [_rows_of(report) for report in reports]
    common = set.intersection(*(set(found) for found in rows))
    cases = sorted({case for case, _ in common})
    if not cases:
        names = ", ".join(map(str, paths))
        raise InputError("no_common_case", f"The reports {names} have no case and structure in common.", "Check them.")
    comparisons = [
        {"other": str(path), "score": score, **_compare(rows[0], other, common, score, seed)}
        for path, other in zip(paths[1:], rows[1:])
        for score in SCORES
    ]
    structures = sorted({structure for _, structure in common})
    return {
        "format": 1,
        "first": str(paths[0]),
        "cases": len(cases),
        "structures": structures,
        "comparisons": comparisons,
    }


def _compare(first: Rows, other: Rows, keys: set[tuple[str, str]], score: str, seed: int) -> dict[str, Any]:
    """Return the paired difference of one score."""
    used = [key for key in sorted(keys) if first[key][score] is not None and other[key][score] is not None]
    means = []
    for rows in (first, other):
        by_case: dict[str, list[float]] = {}
        for key in used:
            by_case.setdefault(key[0], []).append(rows[key][score])
        means.append({case: statistics.fmean(values) for case, values in by_case.items()})
    return paired_difference(means[0], means[1], larger_is_better=score != "hd95_mm", seed=seed).to_json()


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = parse_json_object(path.read_bytes())
        if not isinstance(report.get("cases"), list) or "tolerance_mm" not in report:
            raise ValueError("it is no report of evaluate")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        message = f"The report {path} cannot be used: {reason}."
        raise InputError("report_unreadable", message, "Give the --output of evaluate.") from error
    return report


def _rows_of(report: Mapping[str, Any]) -> Rows:
    """Return the rows of structures that the reference labels."""
    return {(row["case"], row["structure"]): row for row in report["cases"] if row["status"] != "not_labelled"}


def _check_comparable(first_path: Path, first: Mapping[str, Any], path: Path, other: Mapping[str, Any]) -> None:
    """Raise `InputError` when two reports measure something else."""
    if first["tolerance_mm"] != other["tolerance_mm"]:
        raise InputError(
            "tolerances_differ",
            f"{first_path} has a tolerance of {first['tolerance_mm']:g} mm, and {path} of {other['tolerance_mm']:g} mm.",
            "Evaluate both with one --tolerance.",
        )
    if first.get("ignore") != other.get("ignore"):
        raise InputError(
            "ignored_values_differ",
            f"{first_path} ignores the value {first.get('ignore')}, and {path} the value {other.get('ignore')}.",
            "Evaluate both with one --ignore.",
        )
    digests, other_digests = first.get(_DIGEST) or {}, other.get(_DIGEST) or {}
    differing = [case for case, digest in digests.items() if other_digests.get(case, digest) != digest]
    rows, other_rows = _rows_of(first), _rows_of(other)
    differing += [
        key[0]
        for key in rows
        if key in other_rows
        and not math.isclose(
            rows[key]["reference_ml"],
            other_rows[key]["reference_ml"],
            rel_tol=_VOLUME_TOLERANCE,
            abs_tol=_VOLUME_TOLERANCE,
        )
    ]
    if differing:
        raise InputError(
            "references_differ",
            f"{first_path} and {path} were scored against other references, for example of case {differing[0]}.",
            "Evaluate both against the same label maps.",
        )

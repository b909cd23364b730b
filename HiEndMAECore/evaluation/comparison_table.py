"""Comparisons as Markdown tables, for a terminal and for a document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def format_summary(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a summary of `comparison_summary.summarize_table`."""
    budget = summary["budget"]
    named = "no budget" if not budget else ", ".join(f"{key} {value:g}" for key, value in budget.items())
    yield f"Split {summary['split']}; {named}; engine {', '.join(summary['engines'])}; {'; '.join(summary['machines'])}."
    yield ""
    yield from _rows(_REGION_COLUMNS, (_region_row(row) for row in summary["regions"]))
    if summary["baseline"]:
        yield ""
        yield f"Difference in mean Dice to {summary['baseline']}, over the same training cases, seeds and test cases:"
        yield ""
        yield from _rows(_DIFFERENCE_COLUMNS, (_difference_row(row) for row in summary["differences"]))
        yield ""
        for test in summary["tests"]:
            yield _test_sentence(test, summary["baseline"])
    if summary["shifted"]:
        yield ""
        yield "Shifted copies: change of Dice of the structures at or above the median of their region:"
        yield ""
        yield from _rows(_SHIFT_COLUMNS, (_shift_row(row) for row in summary["shifted"]))


def format_report_comparison(comparison: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a comparison of evaluation reports."""
    yield f"{comparison['cases']} common cases, {len(comparison['structures'])} structures; first: {comparison['first']}."
    yield ""
    columns = ("other report", "score", "difference (95 %)", "n", "wins / ties / losses", "p")
    yield from _rows(columns, (_report_row(row) for row in comparison["comparisons"]))


_REGION_COLUMNS = (
    "region", "arm", "runs", "Dice (95 %)", "HD95 mm", "missed > 2 ml", "expected / true Dice", "steps", "s / step",
    "learning s", "s / scan",
)  # fmt: skip
_DIFFERENCE_COLUMNS = ("region", "arm", "difference (95 %)", "n", "wins / ties / losses", "p")
_SHIFT_COLUMNS = ("region", "arm", "copy", "change", "worst structure", "others", "less than half left")


def _region_row(row: Mapping[str, Any]) -> list[str]:
    expected = "-"
    if row["expected_dice"] is not None:
        expected = f"{row['expected_dice']:.2f} / {row['true_dice_of_expected']:.2f}"
    missed = ", ".join(f"{name} {count}" for name, count in row["missed_structures"].items())
    arm = row["arm"] + (" (learned with the scans it segments)" if row["uses_targets"] else "")
    return [
        row["region"], arm, f"{row['training_cases']} x {row['seeds']}", _interval(row["dice"]),
        _number(row["hd95_mm"]["mean"], 1), f"{row['missed']}" + (f" ({missed})" if missed else ""), expected,
        _number(row["steps"], 0), _number(row["seconds_per_step"], 3), _number(row["cpu_seconds"], 0),
        _number(row["apply_seconds_per_scan"], 1),
    ]  # fmt: skip


def _difference_row(row: Mapping[str, Any]) -> list[str]:
    return [row["region"], row["arm"], *_paired_cells(row)]


def _report_row(row: Mapping[str, Any]) -> list[str]:
    return [row["other"], row["score"], *_paired_cells(row)]


def _paired_cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a paired difference."""
    p = "-" if row["p"] is None else f"{row['p']:.2g}"
    return [_interval(row, signed=True), str(row["n"]), f"{row['wins']} / {row['ties']} / {row['losses']}", p]


def _shift_row(row: Mapping[str, Any]) -> list[str]:
    worst = row["worst"]
    others = list(row["other_structures"].values())
    partial = f"{row['partial']}"
    if row["partial_difference"] is not None:
        partial += f" ({row['partial_difference']:+.3f})"
    return [
        row["region"], row["arm"], row["copy"], _number(row["difference"], 3, signed=True),
        f"{worst} {row['structures'][worst]:+.3f}" if worst else "-",
        f"{sum(others) / len(others):+.3f}" if others else "-", partial,
    ]  # fmt: skip


def _test_sentence(test: Mapping[str, Any], baseline: str) -> str:
    if test["p"] is None:
        return f"{test['arm']} and {baseline} have no common case."
    return (
        f"{test['arm']} less {baseline} over {len(test['regions'])} region(s) of equal weight, {test['n']} cases: "
        f"{test['mean']:+.3f}, stratified permutation test p = {test['p']:.2g}."
    )


def _rows(columns: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _interval(value: Mapping[str, Any], *, signed: bool = False) -> str:
    """Return a mean with its interval."""
    if value["interval"] is None:
        return _number(value["mean"], 3, signed=signed)
    sign = "+" if signed else ""
    low, high = value["interval"]
    return f"{value['mean']:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def _number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """Return a number with fixed digits, a dash for None."""
    return "-" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"

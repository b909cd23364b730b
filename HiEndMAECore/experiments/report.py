"""Print and write what `compare` reports: the summary of tables, and the comparison of evaluation reports."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.evaluation.comparison_summary import summarize_table
from HiEndMAECore.evaluation.comparison_table import format_report_comparison, format_summary
from HiEndMAECore.evaluation.report_comparison import compare_reports
from HiEndMAECore.io.atomic import write_text
from HiEndMAECore.reporting.reporter import Reporter

from .plan import Budget
from .table import read_results


def report_tables(
    tables: Sequence[Path], output: Path | None, *, budget: Budget, baseline: str | None, seed: int, report: Reporter
) -> dict[str, Any]:
    """Report tables.

    Args:
        tables: Tables of one split.
        output: JSON file to write; None writes none.
        budget: The budget to report; one without a value reports the only one of the tables.
        baseline: Arm to compare the others with.
        seed: Seed of the intervals and tests.
        report: Receives the table and the means as metrics.

    Raises:
        InputError: `table_unreadable` or `table_empty`.
        UsageError: `splits_mixed`, `budgets_mixed` or `baseline_unknown`.
    """
    chosen = budget.to_json() if budget.steps or budget.cpu_seconds else None
    summary = summarize_table(read_results(tables, budget=chosen), baseline=baseline, seed=seed)
    for row in summary["regions"]:
        if row["settings"] > 1:
            message = f"The arm {row['arm']} has results of {row['settings']} settings in {row['region']}."
            report.warning("settings_differ", message, "Give changed arms another name, or use another table.")
        dice = row["dice"]
        report.metric(
            "dice", dice["mean"], region=row["region"], arm=row["arm"], interval=dice["interval"], n=dice["n"]
        )
    return _write(summary, format_summary(summary), output, report)


def report_evaluations(reports: Sequence[Path], output: Path | None, *, seed: int, report: Reporter) -> dict[str, Any]:
    """Compare evaluation reports; arguments and errors as of `report_tables` and `compare_reports`."""
    comparison = compare_reports(reports, seed=seed)
    for row in comparison["comparisons"]:
        report.metric("difference", row["mean"], score=row["score"], other=row["other"], p=row["p"], n=row["n"])
    return _write(comparison, format_report_comparison(comparison), output, report)


def _write(result: Mapping[str, Any], lines: Iterable[str], output: Path | None, report: Reporter) -> dict[str, Any]:
    for line in lines:
        report.print_result(line)
    if output is None:
        return {}
    write_text(output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return {"report": output}

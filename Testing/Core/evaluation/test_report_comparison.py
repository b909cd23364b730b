"""Comparison of evaluation reports: what is compared, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import run

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.evaluation.report_comparison import compare_reports


def write(folder: Path, name: str, dice: dict[str, float], **values: Any) -> Path:
    """Write a report of one structure."""
    cases = [
        {"case": case, "structure": "liver", "value": 1, "status": "scored" if score else "missed", "dice": score,
         "hd95_mm": 10.0 * (1 - score) if score else None, "nsd": score, "reference_ml": 1500.0, "prediction_ml": 1400.0}
        for case, score in dice.items()
    ]  # fmt: skip
    path = folder / name
    path.write_text(json.dumps({"format": 1, "tolerance_mm": 2.0, "cases": cases, **values}))
    return path


def test_compare_reports_pairs_common_cases(tmp_path: Path) -> None:
    first = write(tmp_path, "a.json", {"p1": 0.9, "p2": 0.8, "p3": 0.7, "alone": 0.1})
    other = write(tmp_path, "b.json", {"p1": 0.8, "p2": 0.9, "p3": 0.0})
    found = compare_reports([first, other])
    dice, hd95, _ = found["comparisons"]
    assert (found["cases"], dice["n"], dice["wins"], dice["losses"]) == (3, 3, 2, 1)
    assert dice["mean"] == pytest.approx((0.1 - 0.1 + 0.7) / 3)
    assert dice["interval"][0] <= dice["mean"] <= dice["interval"][1]
    assert (hd95["n"], hd95["wins"], hd95["losses"]) == (2, 1, 1)  # the missed structure has no distance


def test_compare_reports_refuses_what_cannot_be_compared(tmp_path: Path) -> None:
    first = write(tmp_path, "a.json", {"p1": 0.9}, reference_sha256={"p1": "12"})
    content = json.loads(first.read_text())
    content["cases"][0]["reference_ml"] = 1490.0
    resized = tmp_path / "resized.json"
    resized.write_text(json.dumps(content))
    table = tmp_path / "table.json"
    table.write_text("{}")
    refused = {
        write(tmp_path, "tolerance.json", {"p1": 0.8}, tolerance_mm=1.0): "tolerances_differ",
        write(tmp_path, "ignore.json", {"p1": 0.8}, ignore=9): "ignored_values_differ",
        write(tmp_path, "digest.json", {"p1": 0.8}, reference_sha256={"p1": "34"}): "references_differ",
        resized: "references_differ",
        write(tmp_path, "others.json", {"p9": 0.8}): "no_common_case",
        table: "report_unreadable",
        tmp_path / "absent.json": "report_unreadable",
    }
    for path, code in refused.items():
        with pytest.raises(InputError) as raised:
            compare_reports([first, path])
        assert raised.value.code == code, path
        assert raised.value.advice
    with pytest.raises(UsageError) as usage:
        compare_reports([first])
    assert usage.value.code == "reports_too_few"


def test_compare_command_compares_reports_and_writes_the_comparison(tmp_path: Path) -> None:
    paths = [write(tmp_path, name, {"p1": 0.5, "p2": score}) for name, score in (("a.json", 0.9), ("b.json", 0.6))]
    output = tmp_path / "comparison.json"
    received, _ = run("compare", "--reports", *paths, "--output", output)
    metrics = {event["score"]: event["value"] for event in received if event["event"] == "metric"}
    assert metrics["dice"] == pytest.approx(0.15)
    assert json.loads(output.read_text())["comparisons"][0]["ties"] == 1

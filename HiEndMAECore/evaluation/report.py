"""Evaluation reports: the JSON file, the CSV table beside it, and a table for a terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.io.atomic import write_text

FIELDS = ("case", "structure", "value", "status", "dice", "hd95_mm", "nsd", "reference_ml", "prediction_ml")


def write_report(output: Path, result: Mapping[str, Any]) -> Path:
    """Write an evaluation report and its table.

    Args:
        output: JSON file to write.
        result: The whole report as plain JSON values; "cases" has one row for each case and structure.

    Returns:
        The CSV file with the rows of "cases", beside `output`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(result["cases"])
    table = output.with_suffix(".csv")
    write_text(table, text.getvalue())
    write_text(output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    return table


def format_table(rows: Sequence[Mapping[str, Any]], tolerance_mm: float) -> Iterator[str]:
    """Yield the lines of a table of means that fits a terminal.

    Args:
        rows: Rows of `statistics.summarize`, each with a "name".
        tolerance_mm: Tolerance of the surface Dice, for the heading.
    """
    nsd = f"NSD {tolerance_mm:g} mm"
    yield f"{'structure':<24}{'n':>4}  {'Dice (95 % interval)':<24}{nsd:>10}{'HD95 mm':>9}"
    for row in rows:
        dice, interval = row["dice"]["mean"], row["dice"]["interval"]
        dice_text = _number(dice, 3) + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")
        numbers = f"{_number(row['nsd']['mean'], 3):>10}{_number(row['hd95_mm']['mean'], 1):>9}"
        notes = [f"{row[key]} {key.replace('_', ' ')}" for key in ("missed", "not_labelled") if row.get(key)]
        if row.get("false_positive_ml"):
            notes.append(f"{row['false_positive_ml']:.2f} ml predicted where not labelled")
        yield f"{row['name'][:23]:<24}{row['dice']['n']:>4}  {dice_text:<24}{numbers}  {', '.join(notes)}".rstrip()


def _number(value: float | None, digits: int) -> str:
    """Return a number with fixed digits, a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"

"""How the scores are written and told: the JSON report, the table beside it, and lines for a person."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from HiEndMAECore.io.atomic import write_text

FIELDS = ("case", "structure", "value", "status", "dice", "hd95_mm", "nsd", "reference_ml", "prediction_ml")


def write_report(output: Path, whole: Mapping[str, Any]) -> Path:
    """Write `whole` to `output` and its "cases" as a CSV beside it, whose path is returned."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(whole["cases"])
    table = output.with_suffix(".csv")
    write_text(table, text.getvalue())
    write_text(output, json.dumps(whole, indent=1, allow_nan=False) + "\n")
    return table


def format_table(rows: Sequence[Mapping[str, Any]], tolerance_mm: float) -> Iterator[str]:
    """A table of `scores.summarise` rows that fits a terminal."""
    nsd = f"NSD {tolerance_mm:g} mm"
    yield f"{'structure':<24}{'n':>4}  {'Dice (95 % interval)':<24}{nsd:>10}{'HD95 mm':>9}"
    for row in rows:
        dice, interval = row["dice"]["mean"], row["dice"]["interval"]
        shown = _number(dice, 3) + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")
        numbers = f"{_number(row['nsd']['mean'], 3):>10}{_number(row['hd95_mm']['mean'], 1):>9}"
        notes = [f"{row[key]} {key.replace('_', ' ')}" for key in ("missed", "not_labelled") if row.get(key)]
        if row.get("false_positive_ml"):
            notes.append(f"{row['false_positive_ml']:.2f} ml predicted where not labelled")
        yield f"{row['name'][:23]:<24}{row['dice']['n']:>4}  {shown:<24}{numbers}  {', '.join(notes)}".rstrip()


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

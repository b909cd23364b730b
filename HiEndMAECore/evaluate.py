"""Score predicted label maps against reference ones: Dice, HD95 and surface Dice for each structure and case.

  python -m HiEndMAECore.evaluate --prediction results --reference labelsTr --output report.json

Two files are compared as they are; in folders, cases pair by name (NAME.nii.gz, NAME_0000.nii.gz). The report is JSON,
with a table beside it (report.csv, one row a case and structure). A structure that a reference does not label is left
out of that structure's mean and counted; a missed structure has Dice 0 and no distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import InputError, UsageError
from .reporting.reporter import Reporter

if TYPE_CHECKING:
    from .evaluation.metrics import StructureScore


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CommandConfig):
    """What to score, against what, and where to write it."""

    prediction: Path = option(help="Predicted label map, or a folder of them.", required=True)
    reference: Path = option(help="Reference label map, or a folder of them.", required=True)
    output: Path = option(help="Report to write, NAME.json; NAME.csv is written beside it.", required=True)
    labels: Path | None = option(
        None, help="dataset.json or model.json that names the structures (default: dataset.json above the reference)."
    )
    tolerance: float = option(2.0, help="Tolerance of the surface Dice in mm.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "tolerance")
        if self.output is not None and self.output.suffix.lower() != ".json":
            raise UsageError("output_not_json", f"--output is {self.output}.", "Give a name that ends in .json.")


def run(config: EvaluateConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Score all pairs and write the report; returns the paths of the report and its table.

    Raises `InputError`: what pairing or reading may raise, and `some_cases_failed` when cases of a folder could not be
    scored; the report then holds the others.
    """
    report = report or Reporter(quiet=True)
    from .data.label_table import structure_names
    from .evaluation import matching, metrics
    from .evaluation.report import write_report
    from .evaluation.statistics import summarize

    found = matching.match_cases(config.prediction, config.reference)
    named = structure_names(config.labels, config.reference)
    for names, code, message in (
        (found.without_prediction, "no_prediction", "a reference but no prediction; not in the means"),
        (found.without_reference, "no_reference", "a prediction but no reference; not scored"),
    ):
        if names:
            few = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            report.warning(code, f"{len(names)} with {message}: {few}.", "The report lists all.")

    batch = config.prediction.is_dir() or config.reference.is_dir()
    scored: dict[str, dict[int, StructureScore]] = {}
    failed: list[dict[str, str]] = []
    todo = list(found.pairs.items())
    for index in report.steps("cases", len(todo)):
        name, (prediction, reference) = todo[index]
        try:
            scored[name] = _score(prediction, reference, config.tolerance)
        except InputError as error:
            if not batch:
                raise
            failed.append({"case": name, "code": error.code, "message": error.message, "advice": error.advice})
            report.warning(error.code, f"{name} was skipped: {error.message}", error.advice)

    values = sorted(set(named).union(*scored.values()))
    called = {value: named.get(value, f"label {value}") for value in values}
    summary = summarize(list(scored.values()), values, seed=config.seed)
    structures = [{"name": called[row["value"]], **row} for row in summary["structures"]]
    whole = {
        "format": 1,
        "prediction": str(config.prediction),
        "reference": str(config.reference),
        "tolerance_mm": config.tolerance,
        "seed": config.seed,
        "overall": summary["overall"],
        "structures": structures,
        "cases": [
            {"case": case, "structure": called[value], **asdict(row.get(value, metrics.not_labelled(value)))}
            for case, row in scored.items()
            for value in values
        ],
        "failed": failed,
        "without_prediction": found.without_prediction,
        "without_reference": found.without_reference,
    }
    table = write_report(config.output, whole)
    _tell(report, [*structures, {"name": "mean of structures", **summary["overall"]}], config.tolerance)
    if failed:
        raise InputError(
            "some_cases_failed",
            f"{len(failed)} of {len(todo)} cases could not be scored: {', '.join(case['case'] for case in failed)}.",
            f"The report {config.output} holds the others.",
        )
    return {"report": config.output, "table": table}


def _score(prediction: Path, reference: Path, tolerance: float) -> dict[int, StructureScore]:
    """The scores of one case, on the prediction's grid. A reference that is stored turned or cropped (as 3D Slicer does)
    is brought there exactly; `InputError` when that takes interpolation, or when a file cannot be read."""
    from .evaluation import metrics
    from .io.alignment import align_label_map
    from .io.readers import read_label_map

    one, other = (read_label_map(path, allow_empty=True) for path in (prediction, reference))
    other = align_label_map(one, other)
    return metrics.score_case(one.array[0], other.array[0], affine=one.affine, tolerance_mm=tolerance)


def _tell(report: Reporter, rows: Sequence[dict[str, Any]], tolerance: float) -> None:
    """The means: `metric` events for a program, a table for a person."""
    from .evaluation import metrics
    from .evaluation.report import format_table

    for row in rows:
        for score in metrics.SCORES:
            message = row[score]
            report.metric(score, message["mean"], structure=row["name"], interval=message["interval"], n=message["n"])
    for line in format_table(rows, tolerance):
        report.info(line)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(EvaluateConfig, run, argv, command="evaluate", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())

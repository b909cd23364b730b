"""Score predicted label maps against reference label maps: Dice, HD95 and surface Dice for each structure and case.

  python -m HiEndMAECore.evaluate --prediction results --reference labelsTr --output report.json

Two files are compared with each other, whatever their names. In folders, cases pair by name (NAME.nii.gz,
NAME_0000.nii.gz). The report is JSON, with a table beside it (report.csv, one row for each case and structure). A case whose
reference does not label a structure is left out of that structure's mean, and the number of such cases is reported; a missed
structure has Dice 0 and no distances. Voxels that the reference ignores (--ignore, or "ignore" in the dataset.json) are left
out of both label maps. Label maps that are stored with other axes, or cropped as 3D Slicer does, are compared on a common grid
without interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import InputError, UsageError
from .reporting.reporter import Reporter


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CommandConfig):
    """The options of `evaluate`."""

    prediction: Path = option(help="Predicted label map, or a folder of them.", required=True)
    reference: Path = option(help="Reference label map, or a folder of them.", required=True)
    output: Path = option(help="Report to write, NAME.json; NAME.csv is written beside it.", required=True)
    labels: Path | None = option(
        None, help="dataset.json or model.json that names the structures (default: dataset.json above the reference)."
    )
    tolerance: float = option(2.0, help="Tolerance of the surface Dice in mm.")
    ignore: int | None = option(
        None, help="Value of reference voxels that are left out (default: 'ignore' of the dataset.json)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "tolerance", "ignore")
        if self.output.suffix.lower() != ".json":
            raise UsageError("output_not_json", f"--output is {self.output}.", "Give a name that ends in .json.")


def run(config: EvaluateConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Score all pairs and write the report.

    Args:
        config: The options.
        report: Receives warnings, progress and means.

    Returns:
        The paths of the report and of its table.

    Raises:
        InputError: The cases cannot be paired or read; or `some_cases_failed`, when cases of a folder could not be scored,
            and the report has the others.
    """
    report = report or Reporter(quiet=True)
    from .evaluation.evaluation import evaluate_label_maps, report_means
    from .evaluation.report import write_report

    evaluation = evaluate_label_maps(
        config.prediction,
        config.reference,
        labels=config.labels,
        tolerance_mm=config.tolerance,
        ignore=config.ignore,
        seed=config.seed,
        report=report,
    )
    table = write_report(config.output, evaluation.result)
    report_means(evaluation.result, report)
    if failed := evaluation.failed:
        raise InputError(
            "some_cases_failed",
            f"{len(failed)} of {evaluation.case_count} cases could not be scored: {', '.join(failed)}.",
            f"The report {config.output} holds the others.",
        )
    return {"report": config.output, "table": table}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(EvaluateConfig, run, argv, command="evaluate", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())

"""Segment scans with a model: one scan, a folder tree, or a list; the label maps lie on each scan's original grid.

python -m HiEndMAECore.segment --model my-model --input scans/ --output results/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .reporting.reporter import Reporter
from .runtime.processes import rank_from_environment

FORMATS = ("nii.gz", "nii", "nrrd", "seg.nrrd", "mha", "dcm")
ENGINES = ("auto", "torch", "openvino")
METHODS = ("auto", "network", "registration")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(CommandConfig):
    """The model, the scans, and what to write."""

    model: Path = option(help="Model folder or .zip.", required=True)
    input: tuple[str, ...] = option((), help="Scans, folders, .txt lists; channels joined by commas.", required=True)
    output: Path = option(
        help="Label map to write, or a folder for several; scans in that folder are not segmented.", required=True
    )
    series: str | None = option(None, help="Series UID, if a DICOM folder holds several series.")
    frame: int | None = option(None, help="Frame of a 4D scan, counted from 0.")
    spacing: tuple[float, float, float] | None = option(
        None, help="Spacing of the network's grid in mm (R A S), instead of the model's.", metavar=("R", "A", "S")
    )
    mirror: bool = option(
        False, help="Test-time augmentation: average with the scan mirrored from right to left (twice as slow)."
    )
    uncertainty: bool = option(
        False,
        help="Also write NAME_entropy: normalized entropy, 1 where all structures and background are equally likely.",
    )
    clean: bool = option(False, help="Post-processing: keep only the largest component of each structure.")
    fill_holes: bool = option(False, help="Post-processing: fill background that a structure encloses.")
    smallest: float | None = option(
        None, help="Post-processing: remove components with a volume below this (ml).", metavar="ML"
    )
    overwrite: bool = option(False, help="Recompute results that are up to date with scan, model and options.")
    format: str = option(
        "nii.gz", help="Format of label maps in a folder; dcm: DICOM SEG, for DICOM input.", choices=FORMATS
    )
    method: str = option(
        "auto",
        help="auto: the network and the labels propagated by registration of the labelled scan, where the model keeps its "
        "atlas; network; registration: the propagated labels alone, without the network.",
        choices=METHODS,
    )
    engine: str = option(
        "auto",
        help="What computes the network; auto: OpenVINO where it is installed and the CPU has bf16, else torch.",
        choices=ENGINES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "spacing", "smallest")


def run(config: SegmentConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Segment all scans; unusable scans are reported and skipped.

    Args:
        config: The options.
        report: Receives progress and warnings, and requests to cancel.

    Returns:
        The label map of each case, by name.

    Raises:
        InputError: `some_cases_failed` at the end of a batch; the error of a single scan is raised itself.
        UsageError: The options contradict each other.
        MissingDependencyError: The engine is not installed.
    """
    report = report or Reporter(quiet=True)
    from .inference import batch_segmentation as batch
    from .inference.batch_pipeline import gather_rows, shard
    from .inference.export import SegmentationOptions
    from .inference.predictor import Predictor
    from .runtime.devices import choose_device

    if rank_from_environment() > 0:
        report.mute()  # the first process reports for all
    jobs = batch.list_jobs(config.input, config.output, config.format)
    predictor = Predictor.load(config.model, device=choose_device(config.device), engine=config.engine)
    options = SegmentationOptions(**{name: getattr(config, name) for name in SegmentationOptions.__dataclass_fields__})
    options = batch.supported_options(options, predictor, report)
    is_single = len(jobs) == 1
    pending = shard(jobs)
    if not (config.overwrite or is_single):
        pending = batch.pending_jobs(pending, predictor, options, report)
    outcomes = gather_rows(batch.segment_cases(pending, predictor, options, report=report, raise_errors=is_single))
    if not is_single:
        batch.report_outcomes(outcomes, report)
    batch.check_outcomes(outcomes, len(jobs))
    report.info(f"Done: {len(jobs)} scan(s), results in {config.output}.")
    return {job.case.name: job.path for job in jobs}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(SegmentConfig, run, argv, command="segment", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())

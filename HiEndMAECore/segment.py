"""Segment scans with a model: one scan, a folder tree, or a list; the labels lie exactly on each scan's own grid.

python -m HiEndMAECore.segment --model my-model --input scans/ --output results/
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import HiEndMAEError, InputError, UsageError
from .reporting.reporter import Reporter
from .runtime.processes import rank_from_environment

if TYPE_CHECKING:
    from .inference.batch_segmentation import CaseInProgress, CaseJob

FORMATS = ("nii.gz", "nii", "nrrd", "seg.nrrd", "mha", "dcm")


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(CommandConfig):
    """Model, scans, and what to write."""

    model: Path | None = option(help="Model folder or .zip.", required=True)
    input: tuple[str, ...] = option((), help="Scans, folders, .txt lists; channels joined by commas.", required=True)
    output: Path | None = option(
        help="Label map to write, or a folder for several; scans in it are passed over.", required=True
    )
    series: str | None = option(None, help="Series UID, where a DICOM folder holds several.")
    frame: int | None = option(None, help="Frame of a 4D scan, counted from 0.")
    spacing: tuple[float, float, float] | None = option(None, help="Working grid in mm instead of the model's.")
    mirror: bool = option(False, help="Average with the scan mirrored from right to left (twice as slow).")
    uncertainty: bool = option(False, help="Also write NAME_entropy: 0 where the model is sure, 1 where it is not.")
    clean: bool = option(False, help="Keep only the largest piece of each structure.")
    fill_holes: bool = option(False, help="Fill background that a structure encloses.")
    smallest: float | None = option(None, help="Remove islands of fewer ml than this.")
    overwrite: bool = option(False, help="Segment again what is there from the same scan, model and options.")
    format: str = option(
        "nii.gz", help="Format of results in a folder; dcm: DICOM SEG, for DICOM input.", choices=FORMATS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "spacing", "smallest")


def run(config: SegmentConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Segment all; a scan that cannot be used is told and skipped, and `InputError` comes at the end."""
    report = report or Reporter(quiet=True)
    assert config.model is not None
    assert config.output is not None
    from .inference import export
    from .inference.batch_pipeline import gather_rows, run_pipeline, shard
    from .inference.batch_segmentation import SegmentationOptions, is_done, read_case
    from .inference.memory_plan import has_room_for
    from .inference.predictor import Predictor
    from .inference.test_time_augmentation import mirrored_classes
    from .runtime.devices import choose_device

    if rank_from_environment() > 0:
        report.mute()  # one of many processes speaks for all
    jobs = _jobs(config)
    predictor = Predictor.load(config.model, device=choose_device(config.device))
    asked = SegmentationOptions(**{name: getattr(config, name) for name in SegmentationOptions.__dataclass_fields__})
    if asked.mirror and mirrored_classes(predictor.description) is None:
        message = (
            "The model has not learned from mirrored scans, for its structures do not allow it: --mirror is left out."
        )
        report.warning("mirror_confuses_sides", message, "Leave --mirror out.")
        asked = replace(asked, mirror=False)
    fresh = config.overwrite or len(jobs) == 1
    mine = shard(jobs)
    todo = [job for job in mine if fresh or not is_done(job, predictor, asked)]
    if len(todo) < len(mine):
        report.info(f"{len(mine) - len(todo)} result(s) are there already; --overwrite makes them again.")

    if todo:
        predictor.probe()

    def compute(job: CaseJob, work: CaseInProgress) -> CaseInProgress:
        report.info(f"{job.case.name} ({todo.index(job) + 1} of {len(todo)})")
        for note in work.warnings:
            report.warning(note["code"], f"{job.case.name}: {note['message']}", note["advice"])
        started = time.monotonic()
        work.result = predictor.infer(work.prepared, report=report, mirror=asked.mirror)
        work.seconds["compute"] = time.monotonic() - started
        return work.without_scan()

    rows: list[tuple[str, float | None, HiEndMAEError | None]] = []
    for job, outcome in run_pipeline(
        todo,
        read=lambda job: read_case(job, predictor, asked),
        compute=compute,
        finish=lambda job, work: export.write_case(job, work, predictor, asked),
        beside=lambda work: has_room_for(work.voxels, len(work.prepared.array)),
        report=report,
    ):
        error = outcome if isinstance(outcome, HiEndMAEError) else None
        if error is not None and len(jobs) == 1:
            raise error
        if error is not None:
            report.warning(error.code, f"{job.case.name} was skipped: {error.message}", error.advice)
        for note in () if isinstance(outcome, HiEndMAEError) else outcome["warnings"]:
            if note["code"] == export.NOTHING_FOUND:
                report.warning(note["code"], f"{job.case.name}: {note['message']}", note["advice"])
        rows.append((job.case.name, None if isinstance(outcome, HiEndMAEError) else outcome["seconds"], error))
    rows = gather_rows(rows)
    if len(jobs) > 1:
        _tell(rows, report)
    failed = [name for name, _, error in rows if error is not None]
    if failed:
        raise InputError(
            "some_cases_failed",
            f"{len(jobs) - len(failed)} of {len(jobs)} scans were segmented; these could not be used: {', '.join(failed)}.",
            "The reasons are given above; the other results are in place.",
        )
    report.info(f"Done: {len(jobs)} scan(s), results in {config.output}.")
    return {job.case.name: job.path for job in jobs}


def _jobs(config: SegmentConfig) -> list[CaseJob]:
    """Every scan that the config names, and where its result goes."""
    from .data.cases import Case, find_cases
    from .inference.batch_segmentation import CaseJob
    from .io.file_names import case_name, file_suffix, is_scan_file, split_channels

    assert config.output is not None
    inputs = [split_channels(text) for text in config.input]
    alone = [files[0] for files in inputs if len(files) == 1]  # together, so that equal names are told apart
    output = config.output.resolve()
    if any(path.is_dir() and path.resolve() == output for path in alone):
        message = f"The results would lie among the scans of {output}, and the next run would take them for scans."
        raise UsageError("output_is_input", message, "Give another --output; a folder within it will do.")
    export = find_cases(alone, exclude=output) if alone else []
    # A segmentation that lies beside the scans is none of them; who names it means it.
    export = [case for case in export if file_suffix(case.channels[0]) != ".seg.nrrd" or case.channels[0] in alone]
    export += [Case(case_name(files[0]), files) for files in inputs if len(files) > 1]
    if not export:
        raise InputError("no_scans", f"{', '.join(config.input)} holds segmentations alone.", "Give scans.")
    names = [case.name for case in export]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("usage", f"Several scans are called {', '.join(twice)}.", "Segment them one by one.")
    into_file = (is_scan_file(config.output) or config.output.suffix.lower() == ".dcm") and not config.output.is_dir()
    if into_file and len(export) > 1:
        raise UsageError("usage", f"{len(export)} scans do not fit into one file {config.output}.", "Give a folder.")
    jobs = [CaseJob(c, config.output if into_file else config.output / f"{c.name}.{config.format}") for c in export]
    scans = {path.resolve() for case in export for path in case.channels}
    for job in jobs:
        if taken := scans & {path.resolve() for path in (job.path, job.entropy)}:
            message = f"The result of {job.case.name} would replace the scan {taken.pop()}."
            raise UsageError("output_is_input", message, "Give another --output.")
    return jobs


def _tell(rows: Sequence[tuple[str, float | None, HiEndMAEError | None]], report: Reporter) -> None:
    """The table at the end of a batch."""
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, seconds, error in sorted(rows, key=lambda row: row[0]):
        report.info(
            f"  {name:<{width}}  {f'done in {seconds:.1f} s' if error is None else f'skipped: {error.message}'}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(SegmentConfig, run, argv, command="segment", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())

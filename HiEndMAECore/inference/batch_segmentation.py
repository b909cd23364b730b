"""A batch of cases: which scans there are, which results are up to date, computing the others, and the summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from HiEndMAECore.data.cases import Case, find_cases
from HiEndMAECore.data.fingerprint import scan_fingerprint
from HiEndMAECore.errors import HiEndMAEError, InputError, UsageError
from HiEndMAECore.io.dicom_seg import require_highdicom, series_files
from HiEndMAECore.io.file_names import case_name, file_suffix, is_scan_file, split_channels
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.reporting.reporter import Reporter

from .atlas_matching import registration_warning
from .batch_pipeline import run_pipeline
from .export import (
    DICOM_SUFFIX,
    NOTHING_FOUND,
    CaseInProgress,
    CaseJob,
    OlderResult,
    SegmentationOptions,
    is_done,
    write_case,
)
from .input_files import describe_inputs
from .memory_plan import has_memory_for_overlap
from .predictor import Predictor
from .quality import compare_with_training_data
from .test_time_augmentation import mirrored_classes


@dataclass(frozen=True)
class CaseOutcome:
    """How one case ended.

    Args:
        name: Name of the case.
        seconds: Duration of its steps; None if it failed.
        error: Why it failed, or None.
        older_result: A sentence about an older result that is still at the place of the one that failed, or "".
    """

    name: str
    seconds: float | None = None
    error: HiEndMAEError | None = None
    older_result: str = ""


def list_jobs(inputs: Sequence[str], output: Path, file_format: str) -> list[CaseJob]:
    """Return every scan that the inputs name, with the label map to write for it.

    Args:
        inputs: Files, folders and .txt lists; the channels of one case are joined by commas.
        output: A label map for a single scan, or a folder.
        file_format: Format of label maps in a folder, such as "nii.gz".

    Raises:
        UsageError: Results would replace scans or each other, or lie among the scans.
        InputError: There are no scans.
    """
    cases = _find_input_cases([split_channels(text) for text in inputs], inputs, output.resolve())
    names = [case.name for case in cases]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError("usage", f"Several scans have the name {', '.join(duplicates)}.", "Segment them one by one.")
    is_file = (is_scan_file(output) or output.suffix.lower() == DICOM_SUFFIX) and not output.is_dir()
    if is_file and len(cases) > 1:
        raise UsageError("usage", f"{len(cases)} scans do not fit into one file {output}.", "Give a folder.")
    jobs = [CaseJob(case, output if is_file else output / f"{case.name}.{file_format}") for case in cases]
    scans = {path.resolve() for case in cases for path in case.channels}
    for job in jobs:
        if replaced := scans & {path.resolve() for path in (job.path, job.entropy_path)}:
            message = f"The result of {job.case.name} would replace the scan {replaced.pop()}."
            raise UsageError("output_is_input", message, "Give another --output.")
    return jobs


def _find_input_cases(channels: Sequence[tuple[Path, ...]], inputs: Sequence[str], output: Path) -> list[Case]:
    """Return the cases of single files and folders, found together so that equal names differ, and of joined channels."""
    single = [files[0] for files in channels if len(files) == 1]
    if any(path.is_dir() and path.resolve() == output for path in single):
        message = f"The results would lie among the scans of {output}, and the next run would take them for scans."
        raise UsageError("output_is_input", message, "Give another --output; a folder within it is possible.")
    cases = find_cases(single, exclude=output) if single else []
    # A segmentation file beside the scans is not a scan, unless it was named itself.
    cases = [case for case in cases if file_suffix(case.channels[0]) != ".seg.nrrd" or case.channels[0] in single]
    cases += [Case(case_name(files[0]), files) for files in channels if len(files) > 1]
    if not cases:
        raise InputError("no_scans", f"{', '.join(inputs)} contains only segmentations.", "Give scans.")
    return cases


def supported_options(options: SegmentationOptions, predictor: Predictor, report: Reporter) -> SegmentationOptions:
    """Return the options that the model supports, and report a warning about the others.

    Raises:
        InputError: `model_without_atlas`, where only registration is asked for.
    """
    if options.method == "registration" and not predictor.atlases:
        raise InputError(
            "model_without_atlas",
            f"The model {predictor.description.name} keeps no atlas of its labelled scan: there is nothing to register.",
            "Use --method network, or train the model without --no-atlas.",
        )
    if not options.mirror or mirrored_classes(predictor.description) is not None:
        return options
    message = (
        "The model was not trained on mirrored scans, because its structures do not allow it: --mirror is ignored."
    )
    report.warning("mirror_confuses_sides", message, "Do not use --mirror with this model.")
    return replace(options, mirror=False)


def pending_jobs(
    jobs: Sequence[CaseJob], predictor: Predictor, options: SegmentationOptions, report: Reporter
) -> list[CaseJob]:
    """Return the jobs whose results are missing or out of date, and report the number of the others."""
    pending = [job for job in jobs if not is_done(job, predictor, options)]
    if len(pending) < len(jobs):
        count = len(jobs) - len(pending)
        report.info(f"{count} result(s) are already present; --overwrite computes them again.")
    return pending


def segment_cases(
    jobs: Sequence[CaseJob],
    predictor: Predictor,
    options: SegmentationOptions,
    *,
    report: Reporter,
    raise_errors: bool = False,
) -> list[CaseOutcome]:
    """Segment the cases one after the other; unusable scans are reported and skipped.

    Args:
        jobs: The cases and their paths.
        predictor: The model.
        options: Options of the run.
        report: Receives progress and warnings, and requests to cancel.
        raise_errors: Raise the error of a case instead of skipping it.

    Returns:
        One outcome for each case, in order.

    Raises:
        HiEndMAEError: A fault that is not a case's own, or any with `raise_errors`.
    """
    older_results = {job: OlderResult.find(job) for job in jobs}
    if jobs and options.method != "registration":
        predictor.probe(report)
    outcomes = []
    for job, outcome in run_pipeline(
        jobs,
        read=lambda job: read_case(job, predictor, options),
        compute=lambda job, work: _compute_case(job, work, predictor, options, report, counter=_counter(job, jobs)),
        write=lambda job, work: write_case(job, work, predictor, options),
        can_overlap=lambda work: has_memory_for_overlap(work.voxels, len(work.prepared.array)),
        report=report,
    ):
        if isinstance(outcome, HiEndMAEError):
            older = older_results[job]
            sentence = (older.describe(predictor) if older else None) or ""
            _report_failure(job, outcome, sentence, report, is_skipped=not raise_errors)
            if raise_errors:
                raise outcome
            outcomes.append(CaseOutcome(job.case.name, error=outcome, older_result=sentence))
        else:
            _report_warnings(job, [w for w in outcome["warnings"] if w["code"] == NOTHING_FOUND], report)
            outcomes.append(CaseOutcome(job.case.name, seconds=outcome["seconds"]))
    return outcomes


def read_case(job: CaseJob, predictor: Predictor, options: SegmentationOptions) -> CaseInProgress:
    """Read and preprocess the scan of a case, and compare it with the model's training data.

    Raises:
        InputError: The scan cannot be used.
        MissingDependencyError: The result shall be DICOM SEG, and highdicom is not installed.
    """
    started = time.monotonic()
    if job.suffix == DICOM_SUFFIX:  # checked now and not after the computation
        require_highdicom()
        series_files(job.case.channels[0], options.series)
    # Described before they are read: a file that changes in between does not match its description, and is read again.
    inputs = describe_inputs(job.case.channels)
    volume = read_volume(
        job.case.channels, name=job.case.name, series=options.series, frame=options.frame, keep_integers=True
    )
    prepared = predictor.preprocess(volume, spacing=options.spacing)
    fingerprint = scan_fingerprint(volume.geometry, prepared.array, options.spacing or predictor.plan.spacing)
    training_fingerprints = predictor.description.training.get("teaching", ())
    warnings = [
        *(dict(note) for note in volume.notes),
        *compare_with_training_data(fingerprint, training_fingerprints),
    ]
    return CaseInProgress(prepared, warnings, inputs, {"read": time.monotonic() - started})


def _compute_case(
    job: CaseJob,
    work: CaseInProgress,
    predictor: Predictor,
    options: SegmentationOptions,
    report: Reporter,
    *,
    counter: str,
) -> CaseInProgress:
    """Report the warnings about a scan and infer its result on the network's grid.

    Raises:
        InputError: `registration_failed`, where only registration is asked for and cannot be used.
    """
    report.info(f"{job.case.name} ({counter})")
    _report_warnings(job, work.warnings, report)
    started = time.monotonic()
    prior = None
    if options.method != "network" and predictor.atlases:
        match = predictor.match(work.prepared, report=report)
        work.prepared, prior, work.registrations = match.scan, match.prior, match.to_json()
        work.seconds["registration"] = time.monotonic() - started
        if prior is None:
            if options.method == "registration":
                message = f"The labelled scan could not be registered to {job.case.name}. {' '.join(match.reasons)}"
                raise InputError("registration_failed", message, "Segment this scan with --method auto.")
            warning = registration_warning(match)
            _report_warnings(job, [warning], report)
            work.warnings.append(warning)
    started = time.monotonic()
    if prior is not None and options.method == "registration":
        work.result = predictor.infer_from_prior(prior)
    else:
        work.result = predictor.infer(work.prepared, report=report, mirror=options.mirror, prior=prior)
    work.seconds["compute"] = time.monotonic() - started
    return work.without_scan()


def _counter(job: CaseJob, jobs: Sequence[CaseJob]) -> str:
    return f"{jobs.index(job) + 1} of {len(jobs)}"


def _report_warnings(job: CaseJob, warnings: Sequence[dict[str, str]], report: Reporter) -> None:
    for warning in warnings:
        report.warning(warning["code"], f"{job.case.name}: {warning['message']}", warning["advice"])


def _report_failure(
    job: CaseJob, error: HiEndMAEError, older_result: str, report: Reporter, *, is_skipped: bool
) -> None:
    """Report why a case was skipped, and the older result that is still at its place."""
    if is_skipped:
        report.warning(error.code, f"{job.case.name} was skipped: {error.message}", error.advice)
    if older_result:
        advice = "Do not take it for a result of this run: delete it, or run the command again with a usable scan."
        report.warning("older_result", f"{job.case.name} could not be segmented. {older_result}", advice)


def report_outcomes(outcomes: Sequence[CaseOutcome], report: Reporter) -> None:
    """Report a table with one row for each case, sorted by name."""
    width = max((len(outcome.name) for outcome in outcomes), default=0)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.name):
        text = f"done in {outcome.seconds:.1f} s" if outcome.error is None else f"skipped: {outcome.error.message}"
        report.info(f"  {outcome.name:<{width}}  {text} {outcome.older_result}".rstrip())


def check_outcomes(outcomes: Sequence[CaseOutcome], total: int) -> None:
    """Check that no case failed.

    Args:
        outcomes: The outcomes of all cases that were computed.
        total: Cases of the batch, with those whose results were present.

    Raises:
        InputError: `some_cases_failed`, with the names of the cases.
    """
    failed = [outcome.name for outcome in outcomes if outcome.error is not None]
    if failed:
        raise InputError(
            "some_cases_failed",
            f"{total - len(failed)} of {total} scans were segmented; these could not be used: {', '.join(failed)}.",
            "The reasons are given above; the other results are in place.",
        )

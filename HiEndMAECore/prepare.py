"""Bring scans to one grid and one range of intensities, once, so that pretraining reads crops instead of volumes.

  python -m HiEndMAECore.prepare --input scans/ --output store

NIfTI, NRRD, MHA, DICOM and dataset folders in any mixture; label maps and second copies of a scan are known by their
voxels. A scan that cannot be used is left out with its reason; a rerun prepares only what is missing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli.options import CommandConfig, option, require_positive
from .cli.runner import run_command
from .errors import HiEndMAEError, InputError, MissingDependencyError, UsageError
from .reporting.reporter import Reporter

if TYPE_CHECKING:
    from .data.cases import Case

_END_THE_RUN = ("disk_full", "not_allowed", "worker_not_started")  # no fault of the scan's


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(CommandConfig):
    """Which scans, where to, on which grid."""

    input: tuple[Path, ...] = option((), help="Scans, folders of scans, or .txt lists of them.", required=True)
    output: Path | None = option(help="Store to write (a folder).", required=True)
    spacing: tuple[float, float, float] = option((1.5, 1.5, 1.5), help="Grid in mm along right, anterior, superior.")
    window: tuple[float, float] = option((-175.0, 250.0), help="CT: the HU that become 0 and 1.")
    modality: str = option("ct", help="ct: window in HU; mri: percentiles of each scan.", choices=("ct", "mri"))
    hold_out: Path | None = option(
        None,
        help="Cases that must not get in: names, files or folders, one a line, or a JSON file with lists of them. "
        "Copies of them under other names stay out too, if they are among the inputs or the list gives their files.",
    )
    workers: int | None = option(
        None, help="Processes that prepare, one thread each; 0: this process alone. By itself: one for each core."
    )
    limit: int | None = option(None, help="Prepare at most so many scans, the first by name.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "spacing", "limit")
        if self.workers is not None and self.workers < 0:
            raise UsageError("usage", f"--workers is {self.workers}.", "Give 0 or more.")
        if not self.window[0] < self.window[1]:
            raise UsageError("usage", f"--window is {self.window}.", "The first value must be the smaller one.")


def run(config: PrepareConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Prepare what is missing; returns the store. Raises `InputError` when not one scan can be used."""
    report = report or Reporter(quiet=True)
    assert config.output is not None
    from .data import ingest
    from .data.cases import find_cases
    from .data.exclusion import ExclusionList
    from .data.fingerprint import read_voxel_digest
    from .data.store_writer import StoreWriter
    from .preprocessing.intensity import IntensityNormalization
    from .preprocessing.pipeline import PreprocessingPlan
    from .runtime.memory import BYTES_PER_VOXEL_READING, CPU, free_memory
    from .runtime.worker_pool import run_jobs

    window = IntensityNormalization("window", *config.window)
    plan = PreprocessingPlan(
        config.spacing, window if config.modality == "ct" else IntensityNormalization.percentiles()
    )
    shelf = StoreWriter.open(config.output, plan.to_json())
    hold_out = ExclusionList.read(config.hold_out, config.input)
    found = find_cases(config.input)
    held, cases = hold_out.part(found)
    channels = shelf.manifest.get("channels") or Counter(len(case.channels) for case in found).most_common(1)[0][0]
    shelf.manifest |= {"channels": channels, "held_out": sum(case in held for case in found)}
    shelf.drop(lambda entry: hold_out.names(entry["name"]))
    cases = cases[: config.limit]
    workers = _cores() if config.workers is None else config.workers
    memory = float(free_memory(CPU))

    def needed(case: Case) -> float:
        return BYTES_PER_VOXEL_READING * ingest.count_voxels(case)

    how: dict[str, Any] = {"workers": workers, "check": report.check, "cost": needed, "budget": memory}

    unknown = [case for case in held if ingest.case_source(case) not in shelf.held]
    for done, (case, outcome) in enumerate(run_jobs(read_voxel_digest, unknown, **how), 1):
        if isinstance(outcome, HiEndMAEError):
            message = f"{case.name} is held out and cannot be read, so copies of it cannot be told: {outcome.message}"
            report.warning("held_out_unreadable", message, outcome.advice)
        else:
            shelf.held[ingest.case_source(case)] = outcome
        report.progress("reading what is held out", done, len(unknown))
    contents = frozenset(shelf.held.values())
    shelf.drop(lambda entry: entry["content"] in contents)

    missing = []
    for case in cases:
        if there := shelf.scans.get(case.name):
            if there["source"] != ingest.case_source(case):
                message = f"Another scan called {case.name} is in the store, from {there['source']}."
                shelf.leave_out(case, InputError("name_taken", message), report)
        elif (takes := needed(case)) > memory:
            message = f"{case.name} takes {takes / 1e9:.1f} GB of memory to prepare; {memory / 1e9:.1f} GB are free."
            shelf.leave_out(case, InputError("too_large", message), report)
        else:
            missing.append(case)
    work = ingest.ScanIngest(config.output, plan, channels, contents, config.seed)
    report.progress("preparing", 0, max(len(missing), 1))
    try:
        for done, (case, outcome) in enumerate(run_jobs(work, missing, **how), 1):
            if isinstance(outcome, MissingDependencyError) or getattr(outcome, "code", "") in _END_THE_RUN:
                raise outcome
            if isinstance(outcome, HiEndMAEError):
                shelf.leave_out(case, outcome, report)
            else:
                shelf.keep(case, outcome, report)
            report.progress("preparing", done, len(missing))
            if report.finish_requested:
                break
    finally:
        shelf.save()
    if not shelf.scans:
        raise InputError("nothing_prepared", "Not one of these scans could be used.", "See the reasons above.")
    size, left_out = shelf.bytes_a_scan, len(shelf.left_out)
    report.metric("scans", len(shelf.scans), left_out=left_out, held_out=shelf.manifest["held_out"], bytes_a_scan=size)
    report.info(
        f"{len(shelf.scans)} scans are in {config.output}, {size / 1e6:.1f} MB each; {left_out} could not be used, "
        f"{shelf.manifest['held_out']} were held out."
    )
    return {"store": config.output}


def _cores() -> int:
    """Of this job, where the system tells: a scheduler gives it a part of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(PrepareConfig, run, argv, command="prepare", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())

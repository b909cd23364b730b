"""Build a store from scans: find, exclude, preprocess in worker processes, and write the manifest as it grows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HiEndMAECore.errors import HiEndMAEError, InputError, MissingDependencyError
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import BYTES_PER_VOXEL_READING, CPU, free_memory
from HiEndMAECore.runtime.worker_pool import run_jobs

from .cases import Case, case_source, find_cases
from .exclusion import ExclusionList
from .fingerprint import read_voxel_digest
from .ingest import ScanIngest, count_voxels
from .store_writer import StoreWriter

_ENDS_THE_RUN = ("disk_full", "not_allowed", "worker_not_started")  # errors that would make every other scan fail too


@dataclass(frozen=True)
class StorePlan:
    """Settings of a store.

    Attributes:
        inputs: Files, folders and lists in which scans are looked for.
        output: Folder of the store.
        preprocessing: Grid and intensities of its scans.
        exclusion_list: File with the cases that must not get in, or None.
        workers: Worker processes, one thread each; 0 works in this process; None takes one for each core.
        limit: Preprocess at most so many scans, the first by name; None for all.
        seed: Seed of the drawn tissue voxels.
    """

    inputs: tuple[Path, ...]
    output: Path
    preprocessing: PreprocessingPlan
    exclusion_list: Path | None = None
    workers: int | None = None
    limit: int | None = None
    seed: int = 0


def build_store(plan: StorePlan, report: Reporter) -> StoreWriter:
    """Preprocess the scans that a store lacks.

    Args:
        plan: Settings of the store.
        report: Receives progress, warnings and the summary.

    Returns:
        The store, saved.

    Raises:
        InputError: Not one scan could be used, or the store, an input or the exclusion list cannot be read.
        Cancelled: The run was cancelled; what is done is saved.
    """
    writer = StoreWriter.open(plan.output, plan.preprocessing.to_json())
    exclusion = ExclusionList.read(plan.exclusion_list, plan.inputs)
    found = find_cases(plan.inputs)
    excluded, cases = exclusion.split(found)
    _warn_unmatched(exclusion, found, report)
    channels = writer.manifest.get("channels") or _most_common_channel_count(found)
    writer.manifest |= {"channels": channels, "held_out": sum(case in excluded for case in found)}
    writer.remove(lambda entry: entry["name"] in exclusion.names)

    pool = _Pool(_cores() if plan.workers is None else plan.workers, float(free_memory(CPU)), report)
    _exclude_digests(writer, excluded, pool)
    missing = _missing_cases(writer, cases[: plan.limit], pool)
    digests = frozenset(writer.excluded_digests.values())
    _ingest_cases(writer, missing, ScanIngest(plan.output, plan.preprocessing, channels, digests, plan.seed), pool)
    if not writer.scans:
        raise InputError("nothing_prepared", "Not one of these scans could be used.", "See the reasons above.")
    _report_summary(writer, report)
    return writer


@dataclass(frozen=True)
class _Pool:
    """Worker processes with a memory budget in bytes."""

    workers: int
    memory: float
    report: Reporter

    def run(self, work: Any, cases: Sequence[Case]) -> Iterator[tuple[Case, Any]]:
        """Yield each case with what `work` returned or raised."""
        return run_jobs(
            work,
            cases,
            workers=self.workers,
            check=self.report.check,
            cost=bytes_to_read,
            budget=self.memory,
        )


def bytes_to_read(case: Case) -> float:
    """Return the bytes that reading and preprocessing a case takes, by its headers."""
    return BYTES_PER_VOXEL_READING * count_voxels(case)


def _most_common_channel_count(found: Sequence[Case]) -> int:
    """Return the number of channels that most cases have."""
    return Counter(len(case.channels) for case in found).most_common(1)[0][0]


def _warn_unmatched(exclusion: ExclusionList, found: Sequence[Case], report: Reporter) -> None:
    """Warn of names on the list that no scan has: a misspelt name excludes nothing."""
    if names := exclusion.unmatched(found):
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        report.warning(
            "held_out_unmatched",
            f"{len(names)} of the names on the exclusion list match no scan: {shown}.",
            "Check their spelling; a name that matches no scan excludes nothing.",
        )


def _exclude_digests(writer: StoreWriter, excluded: Sequence[Case], pool: _Pool) -> None:
    """Record the voxel digests of excluded scans, and remove their copies from the store."""
    unknown = [case for case in excluded if case_source(case) not in writer.excluded_digests]
    for done, (case, outcome) in enumerate(pool.run(read_voxel_digest, unknown), 1):
        if isinstance(outcome, HiEndMAEError):
            message = f"{case.name} is excluded but cannot be read, so that copies of it cannot be detected: {outcome.message}"
            pool.report.warning("held_out_unreadable", message, outcome.advice)
        else:
            writer.excluded_digests[case_source(case)] = outcome
        pool.report.progress("reading what is held out", done, len(unknown))
    digests = frozenset(writer.excluded_digests.values())
    writer.remove(lambda entry: entry["content"] in digests)


def _missing_cases(writer: StoreWriter, cases: Sequence[Case], pool: _Pool) -> list[Case]:
    """Return the cases to preprocess; skip those that are too large or whose name is taken by another scan."""
    missing = []
    for case in cases:
        if entry := writer.scans.get(case.name):
            if entry["source"] != case_source(case):
                message = f"Another scan called {case.name} is in the store, from {entry['source']}."
                writer.skip(case, InputError("name_taken", message, "Rename the scan."), pool.report)
        elif (needed := bytes_to_read(case)) > pool.memory:
            message = (
                f"{case.name} takes {needed / 1e9:.1f} GB of memory to preprocess; {pool.memory / 1e9:.1f} GB are free."
            )
            writer.skip(case, InputError("too_large", message, "Close other programs, or crop the scan."), pool.report)
        else:
            missing.append(case)
    return missing


def _ingest_cases(writer: StoreWriter, missing: Sequence[Case], work: ScanIngest, pool: _Pool) -> None:
    """Preprocess and add the missing cases. The manifest is saved whatever ends the loop."""
    report = pool.report
    report.progress("preparing", 0, max(len(missing), 1))
    try:
        for done, (case, outcome) in enumerate(pool.run(work, missing), 1):
            if isinstance(outcome, MissingDependencyError) or getattr(outcome, "code", "") in _ENDS_THE_RUN:
                raise outcome
            if isinstance(outcome, HiEndMAEError):
                writer.skip(case, outcome, report)
            else:
                writer.add(case, outcome, report)
            report.progress("preparing", done, len(missing))
            if report.finish_requested:
                break
    finally:
        writer.save()


def _report_summary(writer: StoreWriter, report: Reporter) -> None:
    size, skipped, held_out = writer.bytes_per_scan, len(writer.skipped), writer.manifest["held_out"]
    report.metric("scans", len(writer.scans), left_out=skipped, held_out=held_out, bytes_a_scan=size)
    report.info(
        f"{len(writer.scans)} scans are in {writer.store}, {size / 1e6:.1f} MB each; {skipped} could not be used, "
        f"{held_out} were excluded."
    )


def _cores() -> int:
    """Return the cores of this job; a scheduler gives it a part of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

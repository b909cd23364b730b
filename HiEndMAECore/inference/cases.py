"""One case of a batch: read and prepared, its result finished and written with its report, and whether it is there already."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore.reporting.run_record import versions
from HiEndMAECore.reporting.writing import write_text
from HiEndMAECore.volumes.datasets import Case
from HiEndMAECore.volumes.dicom_seg import require_highdicom, series_files, write_dicom_seg
from HiEndMAECore.volumes.files import is_dicom_file, read_volume, suffix_of, write_labels, write_scalar
from HiEndMAECore.volumes.preparation import Prepared

from .cleaning import drop_islands, fill_holes, keep_largest
from .predictor import NetworkSegmentation, Predictor
from .trust import facts_of, unlike

DICOM = ".dcm"
NOTHING_FOUND = "nothing_found"  # the one warning that only the result shows


@dataclass(frozen=True)
class Options:
    """What is asked of every case; see the options of `segment` of the same names."""

    series: str | None = None
    frame: int | None = None
    spacing: tuple[float, float, float] | None = None
    mirror: bool = False
    uncertainty: bool = False
    clean: bool = False
    fill_holes: bool = False
    smallest: float | None = None


@dataclass(frozen=True)
class Job:
    """One case and the label map to write."""

    case: Case
    path: Path

    @property
    def record(self) -> Path:
        """The report beside the result."""
        return self.path.with_name(f"{self._stem}.json")

    @property
    def entropy(self) -> Path:
        """The entropy map beside the result; a segmentation file's is a plain volume."""
        plain = {".seg.nrrd": ".nrrd", DICOM: ".nii.gz"}
        return self.path.with_name(f"{self._stem}_entropy{plain.get(self.suffix, self.suffix)}")

    @property
    def suffix(self) -> str:
        return suffix_of(self.path) or self.path.suffix.lower()

    @property
    def _stem(self) -> str:
        return self.path.name[: len(self.path.name) - len(self.suffix)]


@dataclass
class Work:
    """A case under way. `seconds` of its parts: read (and prepare), compute, write (from the way home on)."""

    prepared: Prepared
    warnings: list[dict[str, str]]
    seconds: dict[str, float] = field(default_factory=dict)
    result: NetworkSegmentation | None = None

    @property
    def voxels(self) -> int:
        """Of the scan as stored."""
        return math.prod(self.prepared.native.shape)

    def without_scan(self) -> Work:
        """Voxels are let go, the geometry stays: all that the way home needs."""
        empty = Prepared(self.prepared.affine, self.prepared.native, self.prepared.array[:, :0].copy())
        return replace(self, prepared=empty)


def read_job(job: Job, predictor: Predictor, options: Options) -> Work:
    """The scan, prepared; the scan itself is let go. Raises `InputError`."""
    started = time.monotonic()
    if job.suffix == DICOM:  # found out now, not when all is computed
        require_highdicom()
        series_files(job.case.channels[0], options.series)
    volume = read_volume(job.case.channels, name=job.case.name, series=options.series, frame=options.frame)
    prepared = predictor.prepare(volume, spacing=options.spacing)
    facts = facts_of(volume.geometry, prepared.array, options.spacing or predictor.plan.spacing)
    warnings = [dict(note) for note in volume.notes] + unlike(facts, predictor.description.training.get("teaching", ()))
    return Work(prepared, warnings, {"read": time.monotonic() - started})


def write_job(job: Job, work: Work, predictor: Predictor, options: Options) -> dict[str, Any]:
    """Bring the result home, clean it, write it with its report; returns the report. The label map comes last: where it
    is, all is there."""
    started = time.monotonic()
    assert work.result is not None
    native = work.prepared.native
    result = predictor.home(work.result, work.prepared, uncertainty=options.uncertainty)
    values = [structure.value for structure in predictor.structures]
    labels, cleaned = _clean(result.labels, values, native.voxel_ml, options)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    if result.entropy is not None:
        write_scalar(job.entropy, result.entropy, native)
    structures = []
    for structure in predictor.structures:
        value = structure.value
        voxels = int(np.count_nonzero(labels == value))
        row = {"name": structure.name, "value": value, "volume_ml": round(voxels * native.voxel_ml, 3)}
        row["confidence"] = result.confidence.get(value)
        structures.append(row | {name: count[value] for name, count in cleaned.items() if value in count})
    if not labels.any():
        advice = "Teach the model for longer, or see whether this scan shows what it learned."
        work.warnings.append({"code": NOTHING_FOUND, "message": "No structure was found.", "advice": advice})
    work.seconds["write"] = time.monotonic() - started
    record = {
        "case": job.case.name,
        **_made_from(job, predictor, options),
        "model": predictor.description.name,
        "spacing_mm": list(options.spacing or predictor.plan.spacing),
        "structures": structures,
        "review_slices": result.review if labels.any() else [],  # where nothing is left there is no border to look at
        "warnings": work.warnings,
        "versions": versions(),
        "seconds": round(sum(work.seconds.values()), 2),
        "seconds_of_parts": {name: round(seconds, 2) for name, seconds in work.seconds.items()},
    }
    write_text(job.record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if job.suffix == DICOM:
        sources = series_files(job.case.channels[0], options.series)
        write_dicom_seg(job.path, labels, native, structures=predictor.structures, sources=sources)
    else:
        write_labels(job.path, labels, native, structures=predictor.structures)
    return record


def is_done(job: Job, predictor: Predictor, options: Options) -> bool:
    """Is the result there, made from these very files by this very model with these options?"""
    try:
        record = json.loads(job.record.read_text(encoding="utf-8"))
        wanted = _made_from(job, predictor, options)
        return job.path.is_file() and all(record.get(key) == value for key, value in wanted.items())
    except (OSError, ValueError, AttributeError):
        return False


def _made_from(job: Job, predictor: Predictor, options: Options) -> dict[str, Any]:
    """What decides a result, as plain JSON."""
    asked = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(options).items()}
    return {
        "weights_sha256": predictor.description.weights_sha256,
        "options": asked,
        "input": [_stamp(path) for path in job.case.channels],
    }


def _stamp(path: Path) -> dict[str, Any]:
    """Size and time of change of a file, or of a folder's DICOM files together."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if is_dicom_file(file)]
    stats = [file.stat() for file in files]
    newest = max((stat.st_mtime_ns for stat in stats), default=0)
    return {"files": len(stats), "bytes": sum(stat.st_size for stat in stats), "modified": newest // 1_000_000}


def _clean(
    labels: np.ndarray, values: Sequence[int], voxel_ml: float, options: Options
) -> tuple[np.ndarray, dict[str, dict[int, int]]]:
    """(labels, {what was done: {value: voxels}}), in this order: islands go, then holes are filled."""
    told: dict[str, dict[int, int]] = {}
    if options.clean:
        labels, told["cleaned_voxels"] = keep_largest(labels, values)
    if options.smallest:
        fewest = options.smallest / voxel_ml
        labels, told["island_voxels"] = drop_islands(labels, values, smaller_than=fewest)
    if options.fill_holes:
        labels, told["filled_voxels"] = fill_holes(labels, values)
    return labels, told

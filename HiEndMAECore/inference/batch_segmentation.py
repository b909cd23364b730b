"""One case of a batch: read and prepared, its result finished and written with its report, and whether it is there already."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.fingerprint import scan_fingerprint
from HiEndMAECore.io.dicom_seg import require_highdicom, series_files
from HiEndMAECore.io.file_names import file_suffix, is_dicom_file
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan

from .predictor import NetworkSegmentation, Predictor
from .quality import compare_with_training_data

DICOM = ".dcm"


@dataclass(frozen=True)
class SegmentationOptions:
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
class CaseJob:
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
        return file_suffix(self.path) or self.path.suffix.lower()

    @property
    def _stem(self) -> str:
        return self.path.name[: len(self.path.name) - len(self.suffix)]


@dataclass
class CaseInProgress:
    """A case under way. `seconds` of its parts: read (and prepare), compute, write (from the way home on)."""

    prepared: PreprocessedScan
    warnings: list[dict[str, str]]
    seconds: dict[str, float] = field(default_factory=dict)
    result: NetworkSegmentation | None = None

    @property
    def voxels(self) -> int:
        """Of the scan as stored."""
        return math.prod(self.prepared.original.shape)

    def without_scan(self) -> CaseInProgress:
        """Voxels are let go, the geometry stays: all that the way home needs."""
        empty = PreprocessedScan(self.prepared.affine, self.prepared.original, self.prepared.array[:, :0].copy())
        return replace(self, prepared=empty)


def read_case(job: CaseJob, predictor: Predictor, options: SegmentationOptions) -> CaseInProgress:
    """The scan, prepared; the scan itself is let go. Raises `InputError`."""
    started = time.monotonic()
    if job.suffix == DICOM:  # found out now, not when all is computed
        require_highdicom()
        series_files(job.case.channels[0], options.series)
    volume = read_volume(job.case.channels, name=job.case.name, series=options.series, frame=options.frame)
    prepared = predictor.preprocess(volume, spacing=options.spacing)
    facts = scan_fingerprint(volume.geometry, prepared.array, options.spacing or predictor.plan.spacing)
    warnings = [dict(note) for note in volume.notes] + compare_with_training_data(
        facts, predictor.description.training.get("teaching", ())
    )
    return CaseInProgress(prepared, warnings, {"read": time.monotonic() - started})


def is_done(job: CaseJob, predictor: Predictor, options: SegmentationOptions) -> bool:
    """Is the result there, whole, made from these very files by this very model with these options?"""
    try:
        record = json.loads(job.record.read_text(encoding="utf-8"))
        wanted = _made_from(job, predictor, options)
        if any(record.get(key) != value for key, value in wanted.items()):
            return False
        written, results = record.get("files"), _results(job, options)
        sizes = [entry["bytes"] for entry in written or ()]  # a file that was cut short is known without reading it
        return sizes == [path.stat().st_size for path in results] and written == [_digest(path) for path in results]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def _made_from(job: CaseJob, predictor: Predictor, options: SegmentationOptions) -> dict[str, Any]:
    """What decides a result, as plain JSON."""
    asked = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(options).items()}
    return {
        "model_sha256": predictor.description.model_sha256,
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


def _results(job: CaseJob, options: SegmentationOptions) -> list[Path]:
    """The files that a case leaves beside its report."""
    return [job.path, job.entropy] if options.uncertainty else [job.path]


def _digest(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}

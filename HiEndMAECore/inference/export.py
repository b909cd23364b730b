"""Result files: the label map, the entropy map and the report NAME.json of a case, and whether they are up to date.

A report has `"format": 2` and binds the result by digests: of the model, of the input files and of the written files.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore.data.cases import Case
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import sha256_file, write_text
from HiEndMAECore.io.dicom_seg import series_files, write_dicom_seg
from HiEndMAECore.io.file_names import file_suffix
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.io.writers import write_label_map, write_scalar_map
from HiEndMAECore.preprocessing.pipeline import PreprocessedScan
from HiEndMAECore.reporting.run_record import versions

from .input_files import are_same_inputs
from .postprocessing import postprocess
from .predictor import Predictor
from .segmentation import NetworkSegmentation, Segmentation

REPORT_FORMAT = 2
DICOM_SUFFIX = ".dcm"
NOTHING_FOUND = "nothing_found"  # the only warning that depends on the result
_NON_VOLUME_SUFFIXES = {".seg.nrrd": ".nrrd", DICOM_SUFFIX: ".nii.gz"}  # and those of their entropy maps


@dataclass(frozen=True)
class SegmentationOptions:
    """The options of `segment` that decide a result. A report stores them under these names."""

    series: str | None = None
    frame: int | None = None
    spacing: tuple[float, float, float] | None = None
    mirror: bool = False
    uncertainty: bool = False
    clean: bool = False
    fill_holes: bool = False
    smallest: float | None = None
    method: str = "auto"

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain JSON, without a method that is the default, as reports had none at first."""
        values = {name: value for name, value in vars(self).items() if (name, value) != ("method", "auto")}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True)
class CaseJob:
    """One case and the label map to write for it."""

    case: Case
    path: Path

    @property
    def report_path(self) -> Path:
        """The report beside the label map."""
        return self.path.with_name(f"{self._stem}.json")

    @property
    def entropy_path(self) -> Path:
        """The entropy map beside the label map, in a volume format also where the label map is a segmentation file."""
        return self.path.with_name(f"{self._stem}_entropy{_NON_VOLUME_SUFFIXES.get(self.suffix, self.suffix)}")

    @property
    def suffix(self) -> str:
        """The format of the label map, such as ".nii.gz"."""
        return file_suffix(self.path) or self.path.suffix.lower()

    @property
    def _stem(self) -> str:
        return self.path.name[: len(self.path.name) - len(self.suffix)]


@dataclass(eq=False)
class CaseInProgress:
    """A case between reading and writing.

    Args:
        prepared: The preprocessed scan.
        warnings: Warnings about the scan, {"code", "message", "advice"}.
        inputs: Description of the input files of each channel, from `input_files.describe_inputs`.
        seconds: Duration of each step: read (with preprocessing), compute, write (resampling and post-processing).
        result: The result on the network's grid, once computed.
        registrations: How the model's atlases match the scan (`AtlasMatch.to_json`).
    """

    prepared: PreprocessedScan
    warnings: list[dict[str, str]]
    inputs: list[dict[str, Any]]
    seconds: dict[str, float] = field(default_factory=dict)
    result: NetworkSegmentation | None = None
    registrations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def voxels(self) -> int:
        """Voxels of the scan as stored, of one channel."""
        return math.prod(self.prepared.original.shape)

    def without_scan(self) -> CaseInProgress:
        """Return the case without the scan's voxels, but with the geometry that resampling the result needs."""
        empty = PreprocessedScan(self.prepared.affine, self.prepared.original, self.prepared.array[:, :0].copy())
        return replace(self, prepared=empty)


@dataclass(frozen=True)
class OlderResult:
    """A label map that was present before this run.

    Args:
        path: The label map.
        stamp: Its size and time of change.
        model_sha256: Digest of the model that made it; None if its report is missing or has none.
    """

    path: Path
    stamp: tuple[int, int]
    model_sha256: str | None

    @classmethod
    def find(cls, job: CaseJob) -> OlderResult | None:
        """Return the label map that is present at the place of `job`, or None."""
        try:
            stat = job.path.stat()
        except OSError:
            return None
        digest = (_read_report(job) or {}).get("model_sha256")
        return cls(job.path, (stat.st_size, stat.st_mtime_ns), digest if isinstance(digest, str) else None)

    def describe(self, predictor: Predictor) -> str | None:
        """Return a sentence that names the file if it is still the one from before this run, else None."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        if (stat.st_size, stat.st_mtime_ns) != self.stamp:
            return None
        if self.model_sha256 == predictor.description.model_sha256:
            return f"An older result of this model is still there: {self.path}."
        origin = "an unknown model" if self.model_sha256 is None else "another model"
        return f"An older result of {origin} is still there: {self.path}."


def is_done(job: CaseJob, predictor: Predictor, options: SegmentationOptions) -> bool:
    """Return whether the complete result of these input files, this model and these options is present.

    A report of another format, or without a digest of the model, does not count.
    """
    try:
        report = _read_report(job) or {}
        if any(report.get(key) != value for key, value in _model_and_options(predictor, options).items()):
            return False
        written, paths = report["files"], _result_paths(job, options)
        # Sizes are compared first, so that a file that was cut short is found without reading any.
        if [entry["bytes"] for entry in written] != [path.stat().st_size for path in paths]:
            return False
        if not are_same_inputs(job.case.channels, report["input"]):
            return False
        return bool(written == [_describe_file(path) for path in paths])
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def write_case(
    job: CaseJob, work: CaseInProgress, predictor: Predictor, options: SegmentationOptions
) -> dict[str, Any]:
    """Resample a result to the original grid, post-process it, and write it with its report.

    The older report is deleted first, and the new one is written last, with digests of the files. A run that ends in between
    leaves no report, or one that does not match the files; `is_done` is False for both.

    Args:
        job: The case and its paths.
        work: The computed case.
        predictor: The model.
        options: Options of the run.

    Returns:
        The report.

    Raises:
        InputError: A file cannot be written, or the DICOM series cannot carry a segmentation.
    """
    started = time.monotonic()
    assert work.result is not None
    original = work.prepared.original
    result = predictor.resample_to_original(work.result, work.prepared, uncertainty=options.uncertainty)
    labels, counts = postprocess(
        result.labels,
        [structure.value for structure in predictor.structures],
        largest_component=options.clean,
        smallest_voxels=options.smallest / original.voxel_ml if options.smallest else None,
        holes=options.fill_holes,
    )
    structures = _structure_rows(labels, counts, result, predictor, original.voxel_ml)
    if not labels.any():
        advice = "Train the model for longer, or check that this scan shows the structures it was trained on."
        work.warnings.append({"code": NOTHING_FOUND, "message": "No structure was found.", "advice": advice})
    work.seconds["write"] = time.monotonic() - started
    report = {
        "case": job.case.name,
        **_model_and_options(predictor, options),
        "input": work.inputs,
        "model": predictor.description.name,
        "engine": work.result.engine,
        "registration": work.registrations,
        "spacing_mm": list(options.spacing or predictor.plan.spacing),
        "structures": structures,
        "review_slices": result.review_slices if labels.any() else [],  # an empty label map has no borders to review
        "warnings": work.warnings,
        "versions": versions(),
        "seconds": round(sum(work.seconds.values()), 2),
        "seconds_of_parts": {name: round(seconds, 2) for name, seconds in work.seconds.items()},
    }
    job.path.parent.mkdir(parents=True, exist_ok=True)
    _delete(job.report_path)
    if result.entropy is not None:
        write_scalar_map(job.entropy_path, result.entropy, original)
    _write_labels(job, labels, original, predictor, options)
    report["files"] = [_describe_file(path) for path in _result_paths(job, options)]
    write_text(job.report_path, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return report


def _structure_rows(
    labels: np.ndarray,
    counts: Mapping[str, Mapping[int, int]],
    result: Segmentation,
    predictor: Predictor,
    voxel_ml: float,
) -> list[dict[str, Any]]:
    """Return the report's row of each structure: volume, confidence, and the voxels that post-processing changed."""
    rows, sizes = [], _count_voxels(labels, [structure.value for structure in predictor.structures])
    for structure in predictor.structures:
        value = structure.value
        row = {"name": structure.name, "value": value, "volume_ml": round(sizes[value] * voxel_ml, 3)}
        row["confidence"] = result.confidence.get(value)
        rows.append(row | {name: count[value] for name, count in counts.items() if value in count})
    return rows


def _count_voxels(labels: np.ndarray, values: Sequence[int]) -> dict[int, int]:
    """Return {value: voxels} of a label map, counted plane by plane, so that the planes stay in the processor's cache."""
    sizes = dict.fromkeys(values, 0)
    for plane in np.moveaxis(labels, int(np.argmax(labels.strides)), 0):
        for value in values:
            sizes[value] += int(np.count_nonzero(plane == value))
    return sizes


def _write_labels(
    job: CaseJob, labels: np.ndarray, original: Geometry, predictor: Predictor, options: SegmentationOptions
) -> None:
    """Write the label map (X, Y, Z) in the format of the job's path."""
    if job.suffix == DICOM_SUFFIX:
        sources = series_files(job.case.channels[0], options.series)
        write_dicom_seg(job.path, labels, original, structures=predictor.structures, sources=sources)
    else:
        write_label_map(job.path, labels, original, structures=predictor.structures)


def _model_and_options(predictor: Predictor, options: SegmentationOptions) -> dict[str, Any]:
    """Return the part of a report that must agree for a result to be up to date, as plain JSON."""
    return {
        "format": REPORT_FORMAT,
        "model_sha256": predictor.description.model_sha256,
        "weights_sha256": predictor.description.weights_sha256,
        "options": options.to_json(),
    }


def _read_report(job: CaseJob) -> dict[str, Any] | None:
    """Return the report beside the label map, or None if it is missing or damaged."""
    try:
        report = json.loads(job.report_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def _result_paths(job: CaseJob, options: SegmentationOptions) -> list[Path]:
    """Return the files that a case has beside its report."""
    return [job.path, job.entropy_path] if options.uncertainty else [job.path]


def _describe_file(path: Path) -> dict[str, Any]:
    """Return name, size and SHA-256 of a file."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        message = f"{path} cannot be replaced ({error.strerror})."
        raise InputError("output_unwritable", message, "Choose another place, or ask for permission.") from error

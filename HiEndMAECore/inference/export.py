"""One case of a batch: read and prepared, its result finished and written with its report, and whether it is there already."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import write_text
from HiEndMAECore.io.dicom_seg import series_files, write_dicom_seg
from HiEndMAECore.io.writers import write_label_map, write_scalar_map
from HiEndMAECore.reporting.run_record import versions

from .batch_segmentation import DICOM, CaseInProgress, CaseJob, SegmentationOptions, _digest, _made_from, _results
from .postprocessing import fill_holes, keep_largest_component, remove_small_components
from .predictor import Predictor

NOTHING_FOUND = "nothing_found"  # the one warning that only the result shows


def write_case(
    job: CaseJob, work: CaseInProgress, predictor: Predictor, options: SegmentationOptions
) -> dict[str, Any]:
    """Bring the result home, clean it, write it with its report; returns the report.

    An older report goes first and the new one comes last, with digests of the files it was written with: a run that
    ends in between leaves no report, or one that does not fit, and `is_done` is false for both.
    """
    started = time.monotonic()
    assert work.result is not None
    native = work.prepared.original
    result = predictor.resample_to_original(work.result, work.prepared, uncertainty=options.uncertainty)
    values = [structure.value for structure in predictor.structures]
    labels, cleaned = _postprocess(result.labels, values, native.voxel_ml, options)
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
    job.path.parent.mkdir(parents=True, exist_ok=True)
    _remove(job.record)
    if result.entropy is not None:
        write_scalar_map(job.entropy, result.entropy, native)
    if job.suffix == DICOM:
        sources = series_files(job.case.channels[0], options.series)
        write_dicom_seg(job.path, labels, native, structures=predictor.structures, sources=sources)
    else:
        write_label_map(job.path, labels, native, structures=predictor.structures)
    record["files"] = [_digest(path) for path in _results(job, options)]
    write_text(job.record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        message = f"{path} cannot be replaced ({error.strerror})."
        raise InputError("output_unwritable", message, "Choose another place, or ask for permission.") from error


def _postprocess(
    labels: np.ndarray, values: Sequence[int], voxel_ml: float, options: SegmentationOptions
) -> tuple[np.ndarray, dict[str, dict[int, int]]]:
    """(labels, {what was done: {value: voxels}}), in this order: islands go, then holes are filled."""
    message: dict[str, dict[int, int]] = {}
    if options.clean:
        labels, message["cleaned_voxels"] = keep_largest_component(labels, values)
    if options.smallest:
        fewest = options.smallest / voxel_ml
        labels, message["island_voxels"] = remove_small_components(labels, values, smaller_than=fewest)
    if options.fill_holes:
        labels, message["filled_voxels"] = fill_holes(labels, values)
    return labels, message

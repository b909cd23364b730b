"""Write label maps as DICOM segmentations (SEG) that refer to the series of the scan, through highdicom (an extra).

Every slice of the series gets its own frame by its position; nothing is resampled, and no order of files is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from HiEndMAECore import __version__
from HiEndMAECore.errors import InputError, MissingDependencyError

from .atomic import atomic_path
from .dicom_series import find_series
from .file_names import is_dicom_file
from .structure import Structure
from .volume import Geometry

_ANATOMY = {"CodingSchemeDesignator": "SCT", "CodeValue": "123037004", "CodeMeaning": "Anatomical structure"}

_SLICE_TOLERANCE_MM = 0.2  # a file this close to a slice of the grid is that slice


def require_highdicom() -> Any:
    """Return the package highdicom. Raises `MissingDependencyError` with the command that installs it."""
    try:
        import highdicom
    except ModuleNotFoundError as error:
        raise MissingDependencyError.of("highdicom", "to write DICOM segmentations") from error
    return highdicom


def series_files(path: Path, series: str | None = None) -> tuple[Path, ...]:
    """Return the files of the one DICOM series at `path`.

    Args:
        path: A folder, or one of its files.
        series: Series instance UID, where the folder holds several.

    Raises:
        InputError: `no_dicom_source`.
    """
    folder = path if path.is_dir() else path.absolute().parent
    found = find_series(folder) if path.is_dir() or is_dicom_file(path) else []
    if series is not None:
        found = [one for one in found if one.uid == series]
    elif not path.is_dir():
        found = [one for one in found if path.name in {file.name for file in one.files}]
    if len(found) != 1:
        raise InputError(
            "no_dicom_source",
            f"{path} is not a DICOM series; a DICOM segmentation needs one to refer to.",
            "Give the DICOM folder (and --series), or choose another --format.",
        )
    return found[0].files


def write_dicom_seg(
    path: Path, labels: np.ndarray, geometry: Geometry, *, structures: Sequence[Structure], sources: Sequence[Path]
) -> None:
    """Write a label map on the grid of a series as one DICOM SEG file.

    Args:
        path: The file to write; it is complete or absent.
        labels: Label map (X, Y, Z).
        geometry: Its grid, that of the series.
        structures: The segments.
        sources: The files of the series; those of another size or position than any slice (localizers) are skipped.

    Raises:
        InputError: A slice has no file of its own, or the series lacks mandatory tags.
        MissingDependencyError: highdicom is not installed.
    """
    hd = require_highdicom()
    images = _source_images(geometry, sources)
    frames = np.zeros((geometry.shape[2], geometry.shape[1], geometry.shape[0]), np.uint16)
    for number, structure in enumerate(structures, start=1):
        frames[(labels == structure.value).transpose(2, 1, 0)] = number
    try:
        segmentation = hd.seg.Segmentation(
            source_images=images,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[_describe_segment(hd, number, one) for number, one in enumerate(structures, start=1)],
            series_instance_uid=hd.UID(),
            series_number=int(images[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="HiEndMAE",
            manufacturer_model_name="HiEndMAECore",
            software_versions=__version__,
            device_serial_number="0",
            series_description="HiEndMAE segmentation",
        )
    except (ValueError, AttributeError, TypeError) as error:  # highdicom's errors for series that lack mandatory tags
        raise InputError(
            "dicom_incomplete",
            f"The DICOM files in {sources[0].parent} cannot carry a segmentation: {error}",
            "Choose another --format.",
        ) from error
    with atomic_path(path, suffix=".dcm") as temporary:
        segmentation.save_as(temporary)


def _source_images(geometry: Geometry, sources: Sequence[Path]) -> list[Any]:
    """Return the data set of each slice of the grid, in the order of its slices. Raises `InputError`."""
    import pydicom

    origins = geometry.slice_origins
    if origins is None:
        origins = geometry.affine[:3, 3] + np.arange(geometry.shape[2])[:, None] * geometry.affine[:3, 2]
    images: dict[int, Any] = {}
    for file in sources:
        image = pydicom.dcmread(file)
        position = np.array(image.get("ImagePositionPatient", [np.inf] * 3), float) * [-1, -1, 1]  # LPS to RAS
        distances = np.linalg.norm(origins - position, axis=1)
        if distances.min() < _SLICE_TOLERANCE_MM and (image.Columns, image.Rows) == geometry.shape[:2]:
            images.setdefault(int(distances.argmin()), image)
    if len(images) < geometry.shape[2] or "NumberOfFrames" in next(iter(images.values())):
        raise InputError(
            "slices_without_file",
            f"Not every slice of the result has its own file in {sources[0].parent}.",
            "Choose another --format.",
        )
    return [images[index] for index in range(geometry.shape[2])]


def _describe_segment(hd: Any, number: int, structure: Structure) -> Any:
    def code(key: str) -> Any:
        entry: Mapping[str, Any] = structure.terminology.get(key) or _ANATOMY
        return hd.sr.CodedConcept(entry["CodeValue"], entry["CodingSchemeDesignator"], entry["CodeMeaning"])

    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure.name[:64],  # the longest that the standard allows
        segmented_property_category=code("category"),
        segmented_property_type=code("type"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="HiEndMAE",
            version=__version__,
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        display_color=hd.color.CIELabColor.from_rgb(*structure.color),
    )

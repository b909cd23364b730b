"""The tags of DICOM files: position, orientation and identity of a slice, and what is no image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from HiEndMAECore.errors import InputError

from .checks import not_a_volume
from .file_names import is_dicom_file
from .itk import dicom_reader, quietly

_MODALITIES_WITHOUT_IMAGES = {
    "RTSTRUCT",
    "RTPLAN",
    "RTDOSE",
    "RTRECORD",
    "SR",
    "PR",
    "KO",
    "REG",
    "FID",
    "DOC",
    "PLAN",
    "SEG",
}


@dataclass(frozen=True)
class DicomSlice:
    """The tags of one DICOM file; position and axes in LPS mm."""

    path: Path
    uid: str
    instance_uid: str
    description: str
    modality: str
    number: int
    size: tuple[int, ...]
    components: int
    spacing: tuple[float, float]
    position: np.ndarray | None
    axes: np.ndarray | None  # (2, 3): along the row (x), along the column (y)


def read_slice_tags(file: Path) -> DicomSlice | None:
    """Return the tags of one file; None when it holds no image (a report, a plan) or is damaged."""
    reader = dicom_reader(file)
    try:
        quietly(reader.ReadImageInformation, file)
    except InputError:
        return None

    def tag(key: str) -> str:
        text = reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""
        return text.encode("utf-8", "replace").decode("utf-8", "replace").strip(" \0")

    def numbers(key: str, count: int) -> list[float] | None:
        try:
            found = [float(part) for part in tag(key).split("\\")]
        except ValueError:
            return None
        return found if len(found) == count and np.isfinite(found).all() else None

    if tag("0008|0060") in _MODALITIES_WITHOUT_IMAGES:
        return None
    position, axes, spacing = numbers("0020|0032", 3), numbers("0020|0037", 6), numbers("0028|0030", 2)
    number = numbers("0020|0013", 1)
    x, y = (spacing[1], spacing[0]) if spacing else reader.GetSpacing()[:2]  # the tag has the row spacing (y) first
    return DicomSlice(
        path=file,
        uid=tag("0020|000e"),
        instance_uid=tag("0008|0018"),
        description=tag("0008|103e"),
        modality=tag("0008|0060"),
        number=int(number[0]) if number else 0,
        size=tuple(reader.GetSize()),
        components=reader.GetNumberOfComponents(),
        spacing=(x, y),
        position=np.array(position) if position else None,
        axes=np.array(axes).reshape(2, 3) if axes else None,
    )


def read_slice_thickness(one: DicomSlice) -> float:
    """Return the thickness of a single slice in mm, else its spacing to others; 1 where the tags give neither."""
    reader = dicom_reader(one.path)
    quietly(reader.ReadImageInformation, one.path)
    for key in ("0018|0050", "0018|0088"):  # slice thickness, spacing between slices
        try:
            if reader.HasMetaDataKey(key) and float(reader.GetMetaData(key)) > 0:
                return float(reader.GetMetaData(key))
        except ValueError:
            continue
    return 1.0


def is_segmentation(file: Path) -> bool:
    """Return whether a file is a DICOM segmentation (SEG)."""
    if not is_dicom_file(file):
        return False
    reader = dicom_reader(file)
    try:
        quietly(reader.ReadImageInformation, file)
    except InputError:
        return False
    return reader.HasMetaDataKey("0008|0060") and reader.GetMetaData("0008|0060").strip(" \0") == "SEG"


def not_a_scan(file: Path) -> InputError:
    """Return the error for a file of a DICOM folder that belongs to no series of images."""
    if not is_segmentation(file):
        return not_a_volume(file)
    return InputError(
        "dicom_segmentation",
        f"{file} is a DICOM segmentation: its frames belong to structures and are not the slices of one volume.",
        "Convert it to a label map on the grid of its scan (NIfTI or .seg.nrrd, with 3D Slicer) and give that.",
    )

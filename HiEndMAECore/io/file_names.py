"""Scans and label maps between disk and `Volume`: NIfTI, NRRD, MHA/MHD and DICOM series.

NIfTI goes through nibabel (stored axes and affine stay as they are); the rest through SimpleITK, whose LPS millimetres
become RAS. DICOM geometry is read from each slice's tags, because a series need not be a regular grid.
"""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")


def file_suffix(path: Path) -> str:
    """The scan suffix of a file, double ones included (".nii.gz"), in lower case; "" if it is none of `SUFFIXES`."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), "")


def is_scan_file(path: Path) -> bool:
    """Does the name of this file end like a volume's? (DICOM: see `is_dicom_file`.)"""
    return bool(file_suffix(Path(path)))


def is_dicom_file(path: Path) -> bool:
    """A DICOM file, by its mark at byte 128 (names and suffixes say nothing); a directory record is none."""
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM" or path.suffix.lower() == ".dcm"
    except OSError:
        return False


def split_channels(text: str) -> tuple[Path, ...]:
    """The files of one case: its channels joined by commas, or one path, which may have commas of its own."""
    return (Path(text),) if Path(text).exists() else tuple(Path(part) for part in text.split(","))


def case_name(path: Path) -> str:
    """NAME of `NAME_0000.nii.gz` (the first channel), `NAME.nii.gz` or a folder `NAME`; of a DICOM file, its folder's."""
    path = Path(path)
    if suffix := file_suffix(path):
        return path.name[: -len(suffix)].removesuffix("_0000") or path.name
    if path.suffix.lower() == ".dcm" or (path.is_file() and is_dicom_file(path)):
        path = path.absolute().parent
    return path.name or path.absolute().name or "case"

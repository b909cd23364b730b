"""File names: the suffixes of scans, names of cases, and how a DICOM file is known."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")


def file_suffix(path: Path) -> str:
    """Return the suffix of a scan in lower case (".nii.gz" counts as one), or "" if it is not in `SUFFIXES`."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), "")


def is_scan_file(path: Path) -> bool:
    """Return whether the name of this file has the suffix of a volume. For DICOM see `is_dicom_file`."""
    return bool(file_suffix(Path(path)))


def is_dicom_file(path: Path) -> bool:
    """Return whether this is a DICOM file, by the mark at byte 128; its name does not matter. A DICOMDIR is none."""
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM" or path.suffix.lower() == ".dcm"
    except OSError:
        return False


def split_channels(text: str) -> tuple[Path, ...]:
    """Split the files of one case at commas, which separate channels. An existing path may contain commas itself."""
    return (Path(text),) if Path(text).exists() else tuple(Path(part) for part in text.split(","))


def case_name(path: Path) -> str:
    """Return NAME for `NAME_0000.nii.gz` (first channel), `NAME.nii.gz` or a folder `NAME`; for DICOM, the folder's name."""
    path = Path(path)
    if suffix := file_suffix(path):
        return path.name[: -len(suffix)].removesuffix("_0000") or path.name
    if path.suffix.lower() == ".dcm" or (path.is_file() and is_dicom_file(path)):
        path = path.absolute().parent
    return path.name or path.absolute().name or "case"

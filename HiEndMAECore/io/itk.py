"""NRRD and MetaImage files, and single DICOM files, through SimpleITK; its LPS millimetres become RAS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from .checks import LPS_TO_RAS, LoadedImage, check_loaded, color_image, not_a_volume, truncated, two_dimensional
from .file_names import file_suffix
from .itk_headers import META_SUFFIXES, NRRD_SUFFIXES, check_header

DICOM_IO = "GDCMImageIO"
_T = TypeVar("_T")


def itk_reader(path: Path) -> sitk.ImageFileReader:
    """Return a reader for this NRRD, MetaImage or DICOM file, restricted to that format.

    ITK never guesses a format, and reads a header only after `check_header` has accepted it.

    Raises:
        InputError: The header is refused.
    """
    suffix = path.suffix.lower()
    if suffix not in NRRD_SUFFIXES + META_SUFFIXES:
        return dicom_reader(path)
    check_header(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if suffix in NRRD_SUFFIXES else "MetaImageIO")
    reader.SetFileName(str(path))
    return reader


def load_itk(path: Path, frame: int | None, *, dicom: bool = False) -> LoadedImage:
    """Read a NRRD or MetaImage file, or a single DICOM file.

    Args:
        path: The file.
        frame: Which frame of a 4D file, counted from 0.
        dicom: The file is DICOM, whatever its name.

    Raises:
        InputError: The file cannot be used; the message names it and the reason.
    """
    reader = dicom_reader(path) if dicom else itk_reader(path)
    image = quietly(reader.Execute, path)
    components, array = image.GetNumberOfComponentsPerPixel(), sitk.GetArrayFromImage(image)
    if components > 1:  # several volumes (Slicer's sequences) or colors, along the last axis
        if components in (3, 4) and array.dtype == np.uint8 and file_suffix(path) != ".seg.nrrd":
            raise color_image(path)
        array = np.moveaxis(array, -1, 0)
    if image.GetDimension() not in (3, 4):
        raise two_dimensional(path)
    size = image.GetDimension()
    directions = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    lps = np.eye(4)
    lps[:3, :3] = directions * np.array(image.GetSpacing())[:3]
    lps[:3, 3] = image.GetOrigin()[:3]
    return check_loaded(path, array.T, LPS_TO_RAS @ lps, frame, [])


def quietly(read: Callable[[], _T], path: Path) -> _T:
    """Run a reader of SimpleITK without its warnings; its failure becomes an `InputError`."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return read()
    except RuntimeError as error:
        text = str(error).lower()
        if any(word in text for word in ("not be read", "read failed", "truncated", "eof", "wrong # of bytes", "zlib")):
            raise truncated(path) from error
        raise not_a_volume(path) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def dicom_reader(file: Path) -> sitk.ImageFileReader:
    """Return a reader for DICOM, whatever the file is called."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO(DICOM_IO)
    reader.SetFileName(str(file))
    return reader


def as_itk(array: np.ndarray, affine: np.ndarray, meta: Mapping[str, str]) -> sitk.Image:
    """Return the image (X, Y, Z) with `affine` (voxel index to RAS mm) and the header fields `meta`."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for key, value in meta.items():
        image.SetMetaData(key, value)
    return image

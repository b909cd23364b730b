"""Scans and label maps between disk and `Volume`: NIfTI, NRRD, MHA/MHD and DICOM series.

NIfTI goes through nibabel (stored axes and affine stay as they are); the rest through SimpleITK, whose LPS millimetres
become RAS. DICOM geometry is read from each slice's tags, because a series need not be a regular grid.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from HiEndMAECore.errors import InputError

from .checks import LoadedImage, check_loaded, color_image, not_a_volume, note, truncated

NIFTI_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img")


def load_nifti(path: Path, suffix: str, frame: int | None) -> LoadedImage:
    try:
        image: Any = nib.load(path, mmap=False)  # a mapped file could not be replaced on Windows
        if image.get_data_dtype().fields is not None or image.get_data_dtype().kind not in "iufb":
            raise color_image(path)
        # Whole numbers of 16 bits with a slope or an intercept fit into 32 bits; nibabel would take 64.
        scaled = (getattr(image.dataobj, "slope", 1), getattr(image.dataobj, "inter", 0)) != (1, 0)
        short = image.get_data_dtype().kind in "iu" and image.get_data_dtype().itemsize <= 2
        array = np.asanyarray(image.dataobj, dtype=np.float32 if scaled and short else None)
    except (EOFError, zlib.error) as error:
        raise truncated(path) from error
    except gzip.BadGzipFile as error:
        raise not_a_volume(path) from error
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ) as error:
        if suffix == ".nii.gz" and _gzip_is_cut(path):
            raise truncated(path) from error
        raise not_a_volume(path) from error
    except MemoryError as error:
        raise InputError(
            "too_large",
            f"{path} says it has {'x'.join(map(str, image.shape))} voxels, more than this machine's memory holds.",
            "Crop or resample the scan; if it is not that large, its header is damaged.",
        ) from error
    except (OSError, ValueError, OverflowError) as error:  # nibabel: "Expected N bytes, got M", or an unreadable mmap
        if isinstance(error, FileNotFoundError):
            raise InputError(
                "file_missing", f"The other half of {path} (.hdr and .img) is missing.", "Put both into one folder."
            ) from error
        raise truncated(path) from error
    if isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        unknown = int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0
    else:
        unknown = True
    notes = []
    if unknown:
        notes.append(
            note(
                "orientation_missing",
                f"{path.name} does not say how the patient lies; the usual default was taken.",
                "Check left and right before you rely on the result.",
            )
        )
    return check_loaded(path, array, np.asarray(image.affine, dtype=np.float64), frame, notes)


def _gzip_is_cut(path: Path) -> bool:
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except EOFError:
        return True
    except (OSError, zlib.error):
        return False
    return False


def as_nifti(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=2)
    try:
        image.set_qform(affine, code=1, strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a shear: only the sform can say it
        image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image

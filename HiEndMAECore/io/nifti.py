"""NIfTI and Analyze files, through nibabel; stored axes and affine stay as they are."""

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
    """Read a NIfTI or Analyze file.

    Args:
        path: The file.
        suffix: Its suffix, one of `NIFTI_SUFFIXES`.
        frame: Which frame of a 4D file, counted from 0.

    Returns:
        Its voxels and geometry; a note when the file does not give the orientation of the patient.

    Raises:
        InputError: The file cannot be used; the message names it and the reason.
    """
    image, array = _read_image(path, suffix)
    notes = []
    if not _has_orientation(image):
        notes.append(
            note(
                "orientation_missing",
                f"{path.name} does not say how the patient lies; the usual default was taken.",
                "Check left and right before you rely on the result.",
            )
        )
    return check_loaded(path, array, np.asarray(image.affine, dtype=np.float64), frame, notes)


def _read_image(path: Path, suffix: str) -> tuple[Any, np.ndarray]:
    """Read header and voxels by nibabel; its exceptions become typed errors."""
    try:
        image: Any = nib.load(path, mmap=False)  # Windows cannot replace a file that is memory-mapped
        if image.get_data_dtype().fields is not None or image.get_data_dtype().kind not in "iufb":
            raise color_image(path)
        # 16-bit integers with a slope or an intercept fit into 32-bit floats; nibabel would use 64 bits.
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
    return image, array


def _has_orientation(image: Any) -> bool:
    """Return whether a header gives the orientation of the patient. Analyze files never do."""
    if not isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        return False
    return int(image.header["sform_code"]) != 0 or int(image.header["qform_code"]) != 0


def _gzip_is_cut(path: Path) -> bool:
    """Return whether a compressed file ends before its stream does."""
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
    """Return the image (X, Y, Z) with `affine` (voxel index to RAS mm) in its sform, and in its qform where that can."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=2)
    try:
        image.set_qform(affine, code=1, strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # only the sform can hold a shear
        image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image

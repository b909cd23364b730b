"""Write label maps and scalar maps in the format of the file's suffix; a file is complete or absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from HiEndMAECore.errors import UsageError

from .atomic import atomic_path
from .file_names import WRITTEN_SUFFIXES, file_suffix
from .itk import as_itk
from .nifti import NIFTI_SUFFIXES, as_nifti
from .seg_nrrd import segmentation_header
from .structure import Structure
from .volume import Geometry


def write_label_map(
    path: str | Path, labels: np.ndarray, geometry: Geometry, *, structures: Sequence[Structure] = ()
) -> None:
    """Write a label map in the format of the file's suffix.

    Args:
        path: The file to write, with one of `WRITTEN_SUFFIXES`. It is complete or absent.
        labels: Label map (X, Y, Z) of whole numbers from 0 on.
        geometry: Its grid.
        structures: Names, colors and terminology, which `.seg.nrrd` carries.

    Raises:
        UsageError: `format_unknown`.
        OSError: The file cannot be written; an older one is unchanged.
    """
    path, highest = Path(path), int(labels.max(initial=0))
    if labels.dtype.kind not in "uib" or int(labels.min(initial=0)) < 0:
        raise ValueError(f"labels are {labels.dtype} from {labels.min()}, must be whole numbers from 0 on")
    kind = np.uint8 if highest < 256 else np.uint16 if highest < 65536 else np.int32
    meta = {}
    if path.name.lower().endswith(".seg.nrrd"):
        meta = segmentation_header(labels, structures)
    _write(path, labels.astype(kind, copy=False), geometry, meta)


def write_scalar_map(path: str | Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a map of numbers (X, Y, Z) as float32; otherwise as `write_label_map`."""
    _write(Path(path), array.astype(np.float32, copy=False), geometry, {})


def _write(path: Path, array: np.ndarray, geometry: Geometry, meta: Mapping[str, str]) -> None:
    suffix = file_suffix(path)
    if suffix not in WRITTEN_SUFFIXES:
        raise UsageError(
            "format_unknown", f"Results cannot be written as {path.name}.", f"Use one of {', '.join(WRITTEN_SUFFIXES)}."
        )
    if array.shape != geometry.shape:
        raise ValueError(f"array has shape {array.shape}, its geometry {geometry.shape}")
    try:
        with atomic_path(path, suffix=suffix) as temporary:
            if suffix in NIFTI_SUFFIXES:
                nib.save(as_nifti(array, geometry.affine), temporary)
            else:
                sitk.WriteImage(as_itk(array, geometry.affine, meta), str(temporary), True)
    except RuntimeError as error:  # SimpleITK has no other kind, for a full disk and for permissions alike
        raise OSError(f"{path} could not be written: {error}") from error

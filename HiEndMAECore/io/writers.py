"""Scans and label maps between disk and `Volume`: NIfTI, NRRD, MHA/MHD and DICOM series.

NIfTI goes through nibabel (stored axes and affine stay as they are); the rest through SimpleITK, whose LPS millimetres
become RAS. DICOM geometry is read from each slice's tags, because a series need not be a regular grid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from HiEndMAECore.errors import UsageError

from .file_names import WRITTEN_SUFFIXES, file_suffix
from .itk import as_itk
from .nifti import NIFTI_SUFFIXES, as_nifti
from .seg_nrrd import segmentation_header
from .structure import Structure
from .volume import Geometry


def write_label_map(
    path: str | Path, labels: np.ndarray, geometry: Geometry, *, structures: Sequence[Structure] = ()
) -> None:
    """A label map (X, Y, Z) in the format of the file's suffix (`WRITTEN_SUFFIXES`), written beside and renamed.

    .seg.nrrd carries names, colours and terminology as 3D Slicer's segmentations do.
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
    """A map of numbers (X, Y, Z), float32, in the format of the file's suffix, written beside and renamed."""
    _write(Path(path), array.astype(np.float32, copy=False), geometry, {})


def _write(path: Path, array: np.ndarray, geometry: Geometry, meta: Mapping[str, str]) -> None:
    suffix = file_suffix(path)
    if suffix not in WRITTEN_SUFFIXES:
        raise UsageError(
            "format_unknown", f"Results cannot be written as {path.name}.", f"Use one of {', '.join(WRITTEN_SUFFIXES)}."
        )
    if array.shape != geometry.shape:
        raise ValueError(f"array has shape {array.shape}, its geometry {geometry.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".part.{path.name}")  # hidden; what a killed run leaves, the next one writes over
    try:
        if suffix in NIFTI_SUFFIXES:
            nib.save(as_nifti(array, geometry.affine), beside)
        else:
            sitk.WriteImage(as_itk(array, geometry.affine, meta), str(beside), True)
        os.replace(beside, path)
    except RuntimeError as error:  # SimpleITK's only kind: no space, no permission
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)

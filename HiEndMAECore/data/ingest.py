"""Read, validate, preprocess and store one scan."""

from __future__ import annotations

import math
import zlib
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.file_names import file_suffix
from HiEndMAECore.io.itk import itk_reader
from HiEndMAECore.io.nifti import NIFTI_SUFFIXES
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.preprocessing.intensity import suggest_normalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess

from .cases import Case, case_source
from .fingerprint import voxel_digest
from .store_writer import write_scan

_EQUAL_NEIGHBORS = 0.9  # share of equal neighboring voxels within structures: no scan has so little noise


@dataclass(frozen=True)
class ScanIngest:
    """Puts scans into a store; a worker process calls it for one case after the other.

    Attributes:
        store: Folder of the store.
        plan: Preprocessing of the scans.
        channels: How many channels every scan must have.
        excluded: Voxel digests of scans that must not get in.
        seed: Seed of the drawn tissue voxels.
    """

    store: Path
    plan: PreprocessingPlan
    channels: int
    excluded: Set[str]
    seed: int

    def __call__(self, case: Case) -> dict[str, Any]:
        """Write the files of a scan and return its manifest entry. Raises `InputError` for one that cannot be used."""
        if len(case.channels) != self.channels:
            message = f"{case.name} has {len(case.channels)} channels, not {self.channels}."
            raise InputError("channels_do_not_fit", message)
        if file_suffix(case.channels[0]) == ".seg.nrrd":
            raise _not_a_scan(case)
        volume = read_volume(case.channels)
        if looks_like_labels(volume):
            raise _not_a_scan(case)
        if volume.channels == 1 and self.plan.normalization.kind == "window" != suggest_normalization(volume).kind:
            raise InputError(
                "not_hounsfield",
                f"{case.name} does not look like CT in HU; a window would make it black and white.",
                "MRI goes into a store of its own: --modality mri.",
            )
        digest = voxel_digest(volume)
        if digest in self.excluded:
            raise InputError("held_out_copy", f"{case.name} has the same voxels as a scan that is held out.")
        entry = write_scan(self.store, case.name, preprocess(volume, self.plan).array, seed=self.seed)
        return {**entry, "content": digest, "source": case_source(case)}


def looks_like_labels(volume: Volume) -> bool:
    """Return whether a volume is a label map: whole numbers from 0 on, nearly all equal to their neighbors."""
    array = volume.array[0]
    if array.min(initial=0) < 0 or (array != np.rint(array)).any():
        return False
    pairs = (array[:-1] > 0) & (array[1:] > 0)
    return bool(pairs.any() and np.mean((array[:-1] == array[1:])[pairs]) > _EQUAL_NEIGHBORS)


def count_voxels(case: Case) -> float:
    """Return the number of voxels times channels by the headers; 0 for a file that cannot be read."""
    return float(sum(_count_file_voxels(path) for path in case.channels))


def _count_file_voxels(path: Path) -> float:
    try:
        if path.is_dir():  # a DICOM series: about two bytes a voxel, compressed to a half
            return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
        if file_suffix(path) in NIFTI_SUFFIXES:
            image: Any = nib.load(path)
            return math.prod(float(n) for n in image.shape)
        reader = itk_reader(path)
        reader.ReadImageInformation()
        return math.prod(float(n) for n in reader.GetSize())
    except (InputError, OSError, RuntimeError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError):
        return 0.0


def _not_a_scan(case: Case) -> InputError:
    return InputError("not_a_scan", f"{case.name} is a label map or a segmentation, not a scan.")

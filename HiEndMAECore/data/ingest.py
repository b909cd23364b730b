"""One scan's way into a store: read, known by its content, prepared, written."""

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
from HiEndMAECore.io.readers import read_volume
from HiEndMAECore.io.volume import Volume
from HiEndMAECore.preprocessing.intensity import suggest_normalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess

from .cases import Case
from .fingerprint import voxel_digest
from .store_writer import write_scan

_ALIKE = 0.9  # of neighbouring voxels inside structures: no scan has so little noise


@dataclass(frozen=True)
class ScanIngest:
    """How scans get into the store at `store`; `held_out` are contents (`content_of`) that must not."""

    store: Path
    plan: PreprocessingPlan
    channels: int
    held_out: Set[str]
    seed: int

    def __call__(self, case: Case) -> dict[str, Any]:
        """The scan's manifest entry, its files written; raises `InputError` for one that is left out."""
        if len(case.channels) != self.channels:
            message = f"{case.name} has {len(case.channels)} channels, not {self.channels}."
            raise InputError("channels_do_not_fit", message)
        if file_suffix(case.channels[0]) == ".seg.nrrd":
            raise _labels(case)
        volume = read_volume(case.channels)
        if looks_like_labels(volume):
            raise _labels(case)
        if volume.channels == 1 and self.plan.normalization.kind == "window" != suggest_normalization(volume).kind:
            raise InputError(
                "not_hounsfield",
                f"{case.name} does not look like CT in HU; a window would make it black and white.",
                "MRI goes into a store of its own: --modality mri.",
            )
        content = voxel_digest(volume)
        if content in self.held_out:
            raise InputError("held_out_copy", f"{case.name} has the same voxels as a scan that is held out.")
        entry = write_scan(self.store, case.name, preprocess(volume, self.plan).array, seed=self.seed)
        return {**entry, "content": content, "source": case_source(case)}


def looks_like_labels(volume: Volume) -> bool:
    """Whole numbers from 0 up, nearly all of them like their neighbours: a label map, not a scan."""
    array = volume.array[0]
    if array.min(initial=0) < 0 or (array != np.rint(array)).any():
        return False
    pairs = (array[:-1] > 0) & (array[1:] > 0)
    return bool(pairs.any() and np.mean((array[:-1] == array[1:])[pairs]) > _ALIKE)


def case_source(case: Case) -> str:
    """Folder and file of a case, which tell it from another of the same name; the rest of the path says nothing of
    the scan and too much of the machine."""
    return "/".join(case.channels[0].absolute().parts[-2:])


def count_voxels(case: Case) -> float:
    """Voxels times channels, from the headers; 0 for a file that cannot be read anyway."""
    return float(sum(_voxels(path) for path in case.channels))


def _voxels(path: Path) -> float:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.iterdir() if file.is_file())  # two bytes, packed to a half
        if file_suffix(path) in (".nii.gz", ".nii", ".hdr", ".img"):
            image: Any = nib.load(path)
            return math.prod(float(n) for n in image.shape)
        reader = itk_reader(path)
        reader.ReadImageInformation()
        return math.prod(float(n) for n in reader.GetSize())
    except (InputError, OSError, RuntimeError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError):
        return 0.0


def _labels(case: Case) -> InputError:
    return InputError("not_a_scan", f"{case.name} is a label map or a segmentation, not a scan.")

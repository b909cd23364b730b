"""One scan's way into a store: read, known by its content, prepared, written."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import io_orientation

from HiEndMAECore.errors import InputError

from . import crop_store
from .datasets import Case
from .files import read_volume, suffix_of
from .preparation import PreparationPlan, prepare, suggest_normalisation
from .volume import Volume

_ALIKE = 0.9  # of neighbouring voxels inside structures: no scan has so little noise


@dataclass(frozen=True)
class Intake:
    """How scans get into the store at `store`; `held_out` are contents (`content_of`) that must not."""

    store: Path
    plan: PreparationPlan
    channels: int
    held_out: Set[str]
    seed: int

    def __call__(self, case: Case) -> dict[str, Any]:
        """The scan's manifest entry, its files written; raises `InputError` for one that is left out."""
        if len(case.channels) != self.channels:
            told = f"{case.name} has {len(case.channels)} channels, not {self.channels}."
            raise InputError("channels_do_not_fit", told)
        if suffix_of(case.channels[0]) == ".seg.nrrd":
            raise _labels(case)
        volume = read_volume(case.channels)
        if looks_like_labels(volume):
            raise _labels(case)
        if volume.channels == 1 and self.plan.normalisation.kind == "window" != suggest_normalisation(volume).kind:
            raise InputError(
                "not_hounsfield",
                f"{case.name} does not look like CT in HU; a window would make it black and white.",
                "MRI goes into a store of its own: --modality mri.",
            )
        content = content_of(volume)
        if content in self.held_out:
            raise InputError("held_out_copy", f"{case.name} has the same voxels as a scan that is held out.")
        entry = crop_store.add_scan(self.store, case.name, prepare(volume, self.plan).array, seed=self.seed)
        return {**entry, "content": content, "source": source_of(case)}


def read_content(case: Case) -> str:
    """`content_of` the scan on disk."""
    return content_of(read_volume(case.channels))


def content_of(volume: Volume) -> str:
    """What two copies of a scan share whatever their names, formats and stored orientations: a digest of the voxels
    as they were measured, along the axes next to R, A, S.

    Not of the prepared voxels, where the last bit of a header's number moves some across a rounding; and without
    spacing and origin, which exports change. A copy that was cropped or resampled is another scan here.
    """
    digest = hashlib.blake2b(digest_size=16)
    order = io_orientation(volume.affine)
    for channel in volume.array:
        turned = nib.orientations.apply_orientation(channel, order)
        # Whole numbers survive every format and slope; MRI in other units counts to the last bit.
        whole = all(np.abs(plane - np.rint(plane)).max(initial=0.0) < 1e-2 for plane in turned)
        digest.update(f"{turned.shape} {whole}".encode())
        for plane in turned:
            digest.update(np.ascontiguousarray(np.rint(plane) + 0.0 if whole else plane).data)  # no -0.0
    return digest.hexdigest()


def looks_like_labels(volume: Volume) -> bool:
    """Whole numbers from 0 up, nearly all of them like their neighbours: a label map, not a scan."""
    array = volume.array[0]
    if array.min(initial=0) < 0 or (array != np.rint(array)).any():
        return False
    pairs = (array[:-1] > 0) & (array[1:] > 0)
    return bool(pairs.any() and np.mean((array[:-1] == array[1:])[pairs]) > _ALIKE)


def source_of(case: Case) -> str:
    """Folder and file of a case, which tell it from another of the same name; the rest of the path says nothing of
    the scan and too much of the machine."""
    return "/".join(case.channels[0].absolute().parts[-2:])


def voxels_of(case: Case) -> float:
    """Voxels times channels, from the headers; 0 for a file that cannot be read anyway."""
    return float(sum(_voxels(path) for path in case.channels))


def _voxels(path: Path) -> float:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.iterdir() if file.is_file())  # two bytes, packed to a half
        if suffix_of(path) in (".nii.gz", ".nii", ".hdr", ".img"):
            image: Any = nib.load(path)
            return math.prod(float(n) for n in image.shape)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return math.prod(float(n) for n in reader.GetSize())
    except (OSError, RuntimeError, ValueError, EOFError, zlib.error, nib.filebasedimages.ImageFileError):
        return 0.0


def _labels(case: Case) -> InputError:
    return InputError("not_a_scan", f"{case.name} is a label map or a segmentation, not a scan.")

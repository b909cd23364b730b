"""Read scans and label maps: dispatch by format, and the checks that hold for both.

NIfTI is read by nibabel, NRRD and MetaImage by SimpleITK, DICOM series by SimpleITK with the geometry of each slice's tags.
Stored axes stay as they are; all affines map voxel indices to RAS mm.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from HiEndMAECore.errors import InputError

from .alignment import describe_difference
from .checks import LoadedImage, check_finite, not_a_volume
from .dicom_series import load_dicom_series
from .file_names import case_name, file_suffix, is_dicom_file
from .itk import load_itk
from .nifti import NIFTI_SUFFIXES, load_nifti
from .volume import Volume

_ROUNDING = 1e-3  # labels may be this far from a whole number, because a slope in the file moves them


def read_volume(
    path: str | Path | Sequence[str | Path],
    *,
    series: str | None = None,
    frame: int | None = None,
    name: str | None = None,
    keep_integers: bool = False,
) -> Volume:
    """Read a scan as float32 (C, X, Y, Z).

    Args:
        path: A file, a DICOM folder (or one of its files), or several: the channels of one case, on one grid.
        series: UID of the DICOM series, when a folder has several.
        frame: Which frame of a 4D file, counted from 0.
        name: The name of the case, when it is not that of the file (`case_name`).
        keep_integers: Return integers of up to 16 bits in the type of the file, which takes less time and memory.

    Returns:
        The scan with its geometry and the warnings of its reader.

    Raises:
        InputError: A file cannot be read, or channels lie on different grids. The message names the file.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if not paths:
        raise InputError("file_missing", "No file was given for this scan.", "Name at least one.")
    channels, geometry, notes = [], None, []
    for one in paths:
        loaded = _load(one, series=series, frame=frame)
        array = loaded.array
        if not (keep_integers and array.dtype.kind in "iu" and array.dtype.itemsize <= 2):
            check_finite(array, one)
            with np.errstate(over="ignore"):
                array = array.astype(np.float32, copy=False)
            check_finite(array, one)
        if geometry is None:
            geometry = loaded.geometry
        elif not geometry.matches(loaded.geometry):
            raise InputError(
                "channels_differ",
                f"{one} does not lie on the same voxel grid as {paths[0]}: {describe_difference(geometry, loaded.geometry)}.",
                "Resample the channels of a case onto the first one before using them together.",
            )
        channels.append(array)
        notes += [note for note in loaded.notes if note not in notes]
    assert geometry is not None
    stacked = channels[0][None] if len(channels) == 1 else np.stack(channels)
    return Volume(stacked, geometry, name or case_name(paths[0]), paths[0], tuple(notes))


def read_label_map(
    path: str | Path, *, series: str | None = None, frame: int | None = None, allow_empty: bool = False
) -> Volume:
    """Read a label map as (1, X, Y, Z) of the smallest unsigned type that holds its values.

    Args:
        path: A file, a DICOM folder, or one of its files.
        series: UID of the DICOM series, when a folder has several.
        frame: Which frame of a 4D file, counted from 0.
        allow_empty: Accept a map without any label, as a prediction may be.

    Returns:
        The label map with its geometry.

    Raises:
        InputError: The file cannot be read, or its values are not labels (negative, not whole, too large, all zero).
    """
    path = Path(path)
    loaded = _load(path, series=series, frame=frame)
    check_finite(loaded.array, path)
    array = _whole_numbers(loaded.array, path, allow_empty=allow_empty)
    kind = np.min_scalar_type(int(array.max(initial=0)))
    return Volume(array.astype(kind, copy=False)[None], loaded.geometry, case_name(path), path, loaded.notes)


def _whole_numbers(array: np.ndarray, path: Path, *, allow_empty: bool) -> np.ndarray:
    """Return the values of a label map, rounded where a float type holds whole numbers; raise `InputError` otherwise."""
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if (np.abs(array - whole) > _ROUNDING).any():
            raise InputError(
                "labels_not_whole",
                f"The label map {path} has values that are not whole numbers.",
                "Give a label map (0 background, 1, 2, … structures), resampled with nearest neighbour, not a scan.",
            )
        array = whole
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if low < 0:
        raise InputError(
            "labels_negative",
            f"The label map {path} has negative values (down to {int(low)}).",
            "Labels are 0 for background and 1, 2, … for structures; is this a scan?",
        )
    if high == 0 and not allow_empty:
        raise InputError(
            "empty_label", f"The label map {path} labels nothing: all voxels are 0.", "Draw at least one structure."
        )
    if high > np.iinfo(np.uint32).max:
        raise InputError("labels_too_large", f"The label map {path} has values up to {high:.0f}.", "Renumber them.")
    return array


def _load(path: Path, *, series: str | None, frame: int | None) -> LoadedImage:
    """Read one file or DICOM folder by the reader of its format."""
    if not path.exists():
        raise InputError("file_missing", f"There is no file or folder {path}.", "Check the path.")
    if path.is_dir():
        return load_dicom_series(path, series, frame)
    if not os.access(path, os.R_OK):
        raise InputError("file_unreadable", f"The file {path} may not be read.", "Ask for permission, or copy it.")
    if path.stat().st_size == 0:
        raise InputError("file_empty", f"The file {path} is empty.", "Copy or export it again.")
    suffix = file_suffix(path)
    if suffix in NIFTI_SUFFIXES:
        return load_nifti(path, suffix, frame)
    if suffix:
        return load_itk(path, frame)
    if is_dicom_file(path):
        return load_dicom_series(path.absolute().parent, series, frame, like=path)
    raise not_a_volume(path)

"""DICOM series: find the series of a folder, sort the slices, and build the geometry of the stack.

The geometry is read from the tags of each slice, because a series need not be a regular grid (gantry tilt, uneven gaps).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from HiEndMAECore.errors import InputError

from .checks import LPS_TO_RAS, LoadedImage, color_image, note, two_dimensional
from .dicom_tags import DicomSlice, is_segmentation, not_a_scan, read_slice_tags, read_slice_thickness
from .file_names import is_dicom_file
from .itk import DICOM_IO, load_itk, quietly
from .volume import Geometry

_SAME_POSITION_MM = 1e-2
_IRREGULAR_MM, _IRREGULAR_SHARE = (
    0.05,
    0.01,
)  # a slice further than this, or than this share of the gap, is off the grid
_TILT_DEGREES = 0.1  # a smaller tilt is rounding


@dataclass(frozen=True)
class Series:
    """One image series of a DICOM folder.

    Attributes:
        uid: Its series instance UID.
        description: Its series description.
        modality: Its modality, such as CT.
        files: Its files.
        shape: Columns, rows, and files (or frames of a single file).
    """

    uid: str
    description: str
    modality: str
    files: tuple[Path, ...]
    shape: tuple[int, int, int]


def find_series(folder: Path) -> list[Series]:
    """Return the image series whose files lie in this folder, those with most slices first."""
    return [_describe(slices) for slices in _group_by_series(Path(folder))]


def _describe(slices: Sequence[DicomSlice]) -> Series:
    first = slices[0]
    deep = first.size[2] if len(slices) == 1 and len(first.size) > 2 else len(slices)
    shape = (first.size[0], first.size[1], deep)
    return Series(first.uid, first.description, first.modality, tuple(one.path for one in slices), shape)


def _group_by_series(folder: Path) -> list[list[DicomSlice]]:
    """Return the slices of each series, the longest series first."""
    groups: dict[str, list[DicomSlice]] = {}
    for file in sorted(folder.iterdir()):
        if is_dicom_file(file) and (one := read_slice_tags(file)) is not None:
            groups.setdefault(one.uid, []).append(one)
    return sorted(groups.values(), key=lambda slices: (-len(slices), slices[0].uid))


def load_dicom_series(folder: Path, series: str | None, frame: int | None, *, like: Path | None = None) -> LoadedImage:
    """Read one series of a DICOM folder.

    Args:
        folder: The folder with its files.
        series: Series instance UID; needed when the folder holds several.
        frame: Which time or echo, counted from 0, of a series that holds several.
        like: One of the files; its series is read when `series` is None.

    Returns:
        float32 voxels (X, Y, Z), their geometry, and warnings (tilt, uneven gaps, skipped files).

    Raises:
        InputError: There is no such series, or it is not one volume.
    """
    slices = _choose_series(folder, series, like)
    if max(one.components for one in slices) > 1:
        raise color_image(slices[0].path)
    if any(len(one.size) > 2 and one.size[2] > 1 for one in slices):  # enhanced DICOM: one file is the volume
        if len(slices) > 1:
            raise InputError(
                "dicom_multiframe",
                f"The series in {folder} has several files of many frames each.",
                "Convert it to NIfTI or NRRD first (3D Slicer, dcm2niix).",
            )
        return load_itk(slices[0].path, frame, dicom=True)
    notes: list[dict[str, str]] = []
    slices = _with_position(slices, notes)
    slices = _of_usual_kind(slices, notes)
    slices = _sort_slices(folder, slices, frame, notes)
    geometry = _stack_geometry(slices, notes)
    return LoadedImage(_read_voxels(folder, slices), geometry, tuple(notes))


def _choose_series(folder: Path, series: str | None, like: Path | None) -> list[DicomSlice]:
    """Return the slices of the series with this UID, of the one that holds `like`, or of the only one."""
    groups = _group_by_series(folder)
    if not groups:
        raise _no_images(folder, like)
    if series is None and like is not None:
        series = next((s[0].uid for s in groups if any(one.path.name == like.name for one in s)), None)
        if series is None:
            raise not_a_scan(like)
    if series is not None:
        groups = [slices for slices in groups if slices[0].uid == series]
        if not groups:
            raise InputError(
                "series_unknown", f"The folder {folder} has no series {series}.", _list_series(find_series(folder))
            )
    if len(groups) > 1:
        raise InputError(
            "several_series",
            f"The folder {folder} holds {len(groups)} DICOM series.",
            "Choose one by its UID: " + _list_series([_describe(slices) for slices in groups]),
        )
    return groups[0]


def _no_images(folder: Path, like: Path | None) -> InputError:
    """Return the error for a folder without any image series."""
    if like is not None:
        return not_a_scan(like)
    if segmentation := next((file for file in sorted(folder.iterdir()) if is_segmentation(file)), None):
        return not_a_scan(segmentation)
    return InputError(
        "no_dicom", f"The folder {folder} holds no DICOM images.", "Give the folder that has the slices in it."
    )


def _with_position(slices: list[DicomSlice], notes: list) -> list[DicomSlice]:
    """Return the slices whose tags give position and orientation, and note how many do not."""
    placed = [one for one in slices if one.position is not None and one.axes is not None]
    if not placed:
        raise two_dimensional(slices[0].path)
    if len(placed) < len(slices):
        notes.append(_skipped(len(slices) - len(placed), "say nothing of their position"))
    return placed


def _read_voxels(folder: Path, slices: Sequence[DicomSlice]) -> np.ndarray:
    """Return the voxels (X, Y, Z) of sorted slices."""
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO(DICOM_IO)
    reader.SetFileNames([str(one.path) for one in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)  # slices of one series may have different rescale slopes
    return sitk.GetArrayFromImage(quietly(lambda: reader.Execute(), folder)).T


def _list_series(found: Sequence[Series]) -> str:
    return "; ".join(
        f"{one.uid or '(no UID)'} ({one.description or one.modality or 'no description'}, {one.shape[2]} slices)"
        for one in found
    )


def _skipped(count: int, why: str) -> dict[str, str]:
    return note(
        "slices_left_out",
        f"Of the DICOM series, {count} file(s) that {why} were left out.",
        "Check that the rest is the scan you mean.",
    )


def _of_usual_kind(slices: list[DicomSlice], notes: list) -> list[DicomSlice]:
    """Return the slices that share size, spacing and orientation with most others, without localizers and scouts."""

    def kind(one: DicomSlice) -> tuple:
        assert one.axes is not None
        return one.size[:2], tuple(np.round(one.spacing, 3)), tuple(np.round(one.axes, 2).ravel() + 0.0)

    usual, count = Counter(kind(one) for one in slices).most_common(1)[0]
    if count < len(slices):
        notes.append(_skipped(len(slices) - count, "lie differently (localizers)"))
    return [one for one in slices if kind(one) == usual]


def _heights(slices: Sequence[DicomSlice]) -> np.ndarray:
    """Return positions in mm along the slice normal of the first slice."""
    assert slices[0].axes is not None
    normal = np.cross(slices[0].axes[0], slices[0].axes[1])
    return np.array([one.position @ normal for one in slices])  # type: ignore[operator]


def _sort_slices(folder: Path, slices: list[DicomSlice], frame: int | None, notes: list) -> list[DicomSlice]:
    """Return the slices sorted along their normal, one at each position; several times or echoes need a choice."""
    order = np.argsort(_heights(slices), kind="stable")
    positions = _group_by_position([slices[index] for index in order])
    surplus = sum(len(group) - 1 for group in positions)
    if surplus == 0:
        return [group[0] for group in positions]
    positions = [list({one.instance_uid or str(one.path): one for one in group}.values()) for group in positions]
    counts = {len(group) for group in positions}
    if counts == {1}:
        notes.append(_skipped(surplus, "are copies of others"))
        return [group[0] for group in positions]
    if len(counts) == 1:
        count = counts.pop()
        if frame is None or not 0 <= frame < count:
            raise InputError(
                "four_dimensional",
                f"The DICOM series in {folder} is not one scan: it holds {count} frames (times or echoes).",
                f"Choose one: 0 to {count - 1}.",
            )
        return [sorted(group, key=lambda one: (one.number, one.path.name))[frame] for group in positions]
    raise InputError(
        "duplicate_slices",
        f"The DICOM series in {folder} has different slices at the same place ({surplus} too many).",
        "Sort the files: two scans or two reconstructions seem to be mixed.",
    )


def _group_by_position(slices: Sequence[DicomSlice]) -> list[list[DicomSlice]]:
    """Return groups of sorted slices that share a position."""
    groups: list[list[DicomSlice]] = []
    for one, height in zip(slices, _heights(slices)):
        if (
            groups
            and abs(height - _heights([groups[-1][0], slices[0]])[0]) < _SAME_POSITION_MM
            and _same_position(groups[-1][0], one)
        ):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _same_position(one: DicomSlice, other: DicomSlice) -> bool:
    assert one.position is not None
    assert other.position is not None
    return bool(np.abs(one.position - other.position).max() < _SAME_POSITION_MM)


def _stack_geometry(slices: Sequence[DicomSlice], notes: list) -> Geometry:
    """Return the geometry of sorted slices: first slice, mean gap, right-handed; true origins if they are irregular.

    As in ITK, and so in 3D Slicer, the mean gap is the distance from the first to the last slice, divided by the number
    of gaps, and is laid along the slice normal.
    """
    first = slices[0]
    assert first.axes is not None
    origins = np.array([one.position for one in slices])
    row, column = first.axes / np.linalg.norm(first.axes, axis=1, keepdims=True)
    normal = np.cross(row, column)
    steps = np.diff(origins, axis=0)
    gap = float(np.linalg.norm(origins[-1] - origins[0]) / len(steps)) if len(steps) else read_slice_thickness(first)
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([row * first.spacing[0], column * first.spacing[1], normal * gap])
    lps[:3, 3] = origins[0]
    regular = origins[0] + np.arange(len(slices))[:, None] * gap * normal
    shape = (first.size[0], first.size[1], len(slices))
    tolerance = max(_IRREGULAR_MM, _IRREGULAR_SHARE * gap)
    if np.linalg.norm(origins - regular, axis=1).max() <= tolerance:
        return Geometry(shape, LPS_TO_RAS @ lps)
    _note_irregular(origins, normal, tolerance, notes)
    return Geometry(shape, LPS_TO_RAS @ lps, origins * [-1.0, -1.0, 1.0])


def _note_irregular(origins: np.ndarray, normal: np.ndarray, tolerance: float, notes: list) -> None:
    """Note a gantry tilt and uneven gaps of slices with these origins (Z, 3), in LPS mm."""
    direction = (origins[-1] - origins[0]) / np.linalg.norm(origins[-1] - origins[0])
    degrees = float(np.degrees(np.arccos(np.clip(direction @ normal, -1.0, 1.0))))
    if degrees > _TILT_DEGREES:
        notes.append(
            note(
                "gantry_tilt",
                f"The slices are tilted by {degrees:.1f} degrees against their stacking direction (gantry tilt).",
                "The scan was straightened for the model, and the result put back onto the slices as they are stored.",
            )
        )
    gaps = np.linalg.norm(np.diff(origins, axis=0), axis=1)
    if gaps.max() - gaps.min() > tolerance:
        notes.append(
            note(
                "uneven_slices",
                f"The gaps between slices are uneven: {gaps.min():.1f} to {gaps.max():.1f} mm.",
                "The true positions were used; lengths and volumes measured across slices on the stored grid are off.",
            )
        )

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

from .checks import LPS_TO_RAS, LoadedImage, color_image, not_a_volume, note, two_dimensional
from .file_names import is_dicom_file
from .itk import DICOM_IO, dicom_reader, load_itk, quietly
from .volume import Geometry

_NO_IMAGE = {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN", "SEG"}


@dataclass(frozen=True)
class Series:
    """One image series of a DICOM folder. `shape`: columns, rows, files (or frames of a single file)."""

    uid: str
    description: str
    modality: str
    files: tuple[Path, ...]
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class _Slice:
    """What one DICOM file says of itself; position and axes in LPS mm."""

    path: Path
    uid: str
    instance_uid: str
    description: str
    modality: str
    number: int
    size: tuple[int, ...]
    components: int
    spacing: tuple[float, float]
    position: np.ndarray | None
    axes: np.ndarray | None  # (2, 3): along the row (x), along the column (y)


def find_series(folder: Path) -> list[Series]:
    """The image series whose files lie in this folder, those with most slices first."""
    return [_describe(slices) for slices in _grouped(Path(folder))]


def _describe(slices: Sequence[_Slice]) -> Series:
    first = slices[0]
    deep = first.size[2] if len(slices) == 1 and len(first.size) > 2 else len(slices)
    shape = (first.size[0], first.size[1], deep)
    return Series(first.uid, first.description, first.modality, tuple(one.path for one in slices), shape)


def _grouped(folder: Path) -> list[list[_Slice]]:
    groups: dict[str, list[_Slice]] = {}
    for file in sorted(folder.iterdir()):
        if is_dicom_file(file) and (one := _read_tags(file)) is not None:
            groups.setdefault(one.uid, []).append(one)
    return sorted(groups.values(), key=lambda slices: (-len(slices), slices[0].uid))


def _read_tags(file: Path) -> _Slice | None:
    """The tags of one file; None when it holds no picture (a report, a plan) or is damaged."""
    reader = dicom_reader(file)
    try:
        quietly(reader.ReadImageInformation, file)
    except InputError:
        return None

    def tag(key: str) -> str:
        text = reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""
        return text.encode("utf-8", "replace").decode("utf-8", "replace").strip(" \0")

    def numbers(key: str, count: int) -> list[float] | None:
        try:
            found = [float(part) for part in tag(key).split("\\")]
        except ValueError:
            return None
        return found if len(found) == count and np.isfinite(found).all() else None

    if tag("0008|0060") in _NO_IMAGE:
        return None
    position, axes, spacing = numbers("0020|0032", 3), numbers("0020|0037", 6), numbers("0028|0030", 2)
    number = numbers("0020|0013", 1)
    x, y = (spacing[1], spacing[0]) if spacing else reader.GetSpacing()[:2]  # the tag has the row spacing (y) first
    return _Slice(
        path=file,
        uid=tag("0020|000e"),
        instance_uid=tag("0008|0018"),
        description=tag("0008|103e"),
        modality=tag("0008|0060"),
        number=int(number[0]) if number else 0,
        size=tuple(reader.GetSize()),
        components=reader.GetNumberOfComponents(),
        spacing=(x, y),
        position=np.array(position) if position else None,
        axes=np.array(axes).reshape(2, 3) if axes else None,
    )


def load_dicom_series(folder: Path, series: str | None, frame: int | None, *, like: Path | None = None) -> LoadedImage:
    groups = _grouped(folder)
    if not groups and like is not None:
        raise not_a_scan(like)
    if not groups:
        if drawn := next((file for file in sorted(folder.iterdir()) if is_segmentation(file)), None):
            raise not_a_scan(drawn)
        raise InputError(
            "no_dicom", f"The folder {folder} holds no DICOM images.", "Give the folder that has the slices in it."
        )
    if series is None and like is not None:
        series = next((s[0].uid for s in groups if any(one.path.name == like.name for one in s)), None)
        if series is None:
            raise not_a_scan(like)
    if series is not None:
        groups = [slices for slices in groups if slices[0].uid == series]
        if not groups:
            raise InputError(
                "series_unknown", f"The folder {folder} has no series {series}.", _listing(find_series(folder))
            )
    if len(groups) > 1:
        raise InputError(
            "several_series",
            f"The folder {folder} holds {len(groups)} DICOM series.",
            "Choose one by its UID: " + _listing([_describe(slices) for slices in groups]),
        )
    slices, notes = groups[0], []
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
    if any(one.position is None or one.axes is None for one in slices):
        placed = [one for one in slices if one.position is not None and one.axes is not None]
        if not placed:
            raise two_dimensional(slices[0].path)
        notes.append(_left_out(len(slices) - len(placed), "say nothing of their position"))
        slices = placed
    slices = _one_stack(slices, notes)
    slices = _one_frame(folder, slices, frame, notes)
    geometry = _stack_geometry(slices, notes)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO(DICOM_IO)
    reader.SetFileNames([str(one.path) for one in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)  # slices of one series may have different rescale slopes
    array = sitk.GetArrayFromImage(quietly(lambda: reader.Execute(), folder))
    return LoadedImage(array.T, geometry, tuple(notes))


def is_segmentation(file: Path) -> bool:
    if not is_dicom_file(file):
        return False
    reader = dicom_reader(file)
    try:
        quietly(reader.ReadImageInformation, file)
    except InputError:
        return False
    return reader.HasMetaDataKey("0008|0060") and reader.GetMetaData("0008|0060").strip(" \0") == "SEG"


def not_a_scan(file: Path) -> InputError:
    """Why this file of a DICOM folder, which belongs to no series of images, cannot be read."""
    if not is_segmentation(file):
        return not_a_volume(file)
    return InputError(
        "dicom_segmentation",
        f"{file} is a DICOM segmentation: its frames belong to structures and are not the slices of one volume.",
        "Convert it to a label map on the grid of its scan (NIfTI or .seg.nrrd, with 3D Slicer) and give that.",
    )


def _listing(found: Sequence[Series]) -> str:
    return "; ".join(
        f"{one.uid or '(no UID)'} ({one.description or one.modality or 'no description'}, {one.shape[2]} slices)"
        for one in found
    )


def _left_out(count: int, why: str) -> dict[str, str]:
    return note(
        "slices_left_out",
        f"Of the DICOM series, {count} file(s) that {why} were left out.",
        "Check that the rest is the scan you mean.",
    )


def _one_stack(slices: list[_Slice], notes: list) -> list[_Slice]:
    """The files that share size, spacing and orientation with most others: localizers and scouts go."""

    def kind(one: _Slice) -> tuple:
        assert one.axes is not None
        return one.size[:2], tuple(np.round(one.spacing, 3)), tuple(np.round(one.axes, 2).ravel() + 0.0)

    usual, count = Counter(kind(one) for one in slices).most_common(1)[0]
    if count < len(slices):
        notes.append(_left_out(len(slices) - count, "lie differently (localizers)"))
    return [one for one in slices if kind(one) == usual]


def _heights(slices: Sequence[_Slice]) -> np.ndarray:
    """Positions along the slice normal of the first slice, mm."""
    assert slices[0].axes is not None
    normal = np.cross(slices[0].axes[0], slices[0].axes[1])
    return np.array([one.position @ normal for one in slices])  # type: ignore[operator]


def _one_frame(folder: Path, slices: list[_Slice], frame: int | None, notes: list) -> list[_Slice]:
    """The slices sorted along their normal, one at each place; several times or echoes need a choice."""
    order = np.argsort(_heights(slices), kind="stable")
    slices = [slices[index] for index in order]
    places: list[list[_Slice]] = []
    for one, height in zip(slices, _heights(slices)):
        if places and abs(height - _heights([places[-1][0], slices[0]])[0]) < 1e-2 and _same_place(places[-1][0], one):
            places[-1].append(one)
        else:
            places.append([one])
    copies = sum(len(place) - 1 for place in places)
    if copies == 0:
        return slices
    places = [list({one.instance_uid or str(one.path): one for one in place}.values()) for place in places]
    counts = {len(place) for place in places}
    if counts == {1}:
        notes.append(_left_out(copies, "are copies of others"))
        return [place[0] for place in places]
    if len(counts) == 1:
        count = counts.pop()
        if frame is None or not 0 <= frame < count:
            raise InputError(
                "four_dimensional",
                f"The DICOM series in {folder} is not one scan: it holds {count} frames (times or echoes).",
                f"Choose one: 0 to {count - 1}.",
            )
        return [sorted(place, key=lambda one: (one.number, one.path.name))[frame] for place in places]
    raise InputError(
        "duplicate_slices",
        f"The DICOM series in {folder} has different slices at the same place ({copies} too many).",
        "Sort the files: two scans or two reconstructions seem to be mixed.",
    )


def _same_place(one: _Slice, other: _Slice) -> bool:
    assert one.position is not None
    assert other.position is not None
    return bool(np.abs(one.position - other.position).max() < 1e-2)


def _stack_geometry(slices: Sequence[_Slice], notes: list) -> Geometry:
    """First slice, mean gap, right-handed; and the slices' true origins if they are no regular grid."""
    first = slices[0]
    assert first.axes is not None
    origins = np.array([one.position for one in slices])
    row, column = first.axes / np.linalg.norm(first.axes, axis=1, keepdims=True)
    normal = np.cross(row, column)
    steps = np.diff(origins, axis=0)
    # As ITK (and so 3D Slicer): from first to last, divided by the number of gaps, laid along the normal.
    gap = float(np.linalg.norm(origins[-1] - origins[0]) / len(steps)) if len(steps) else _thickness(first)
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([row * first.spacing[0], column * first.spacing[1], normal * gap])
    lps[:3, 3] = origins[0]
    regular = origins[0] + np.arange(len(slices))[:, None] * gap * normal
    shape = (first.size[0], first.size[1], len(slices))
    if np.linalg.norm(origins - regular, axis=1).max() <= max(0.05, 0.01 * gap):
        return Geometry(shape, LPS_TO_RAS @ lps)

    along = (origins[-1] - origins[0]) / np.linalg.norm(origins[-1] - origins[0])
    degrees = float(np.degrees(np.arccos(np.clip(along @ normal, -1.0, 1.0))))
    if degrees > 0.1:
        notes.append(
            note(
                "gantry_tilt",
                f"The slices are tilted by {degrees:.1f} degrees against their stacking direction (gantry tilt).",
                "The scan was straightened for the model, and the result put back onto the slices as they are stored.",
            )
        )
    gaps = np.linalg.norm(steps, axis=1)
    if gaps.max() - gaps.min() > max(0.05, 0.01 * gap):
        notes.append(
            note(
                "uneven_slices",
                f"The gaps between slices are uneven: {gaps.min():.1f} to {gaps.max():.1f} mm.",
                "The true positions were used; lengths and volumes measured across slices on the stored grid are off.",
            )
        )
    return Geometry(shape, LPS_TO_RAS @ lps, origins * [-1.0, -1.0, 1.0])


def _thickness(one: _Slice) -> float:
    reader = dicom_reader(one.path)
    quietly(reader.ReadImageInformation, one.path)
    for key in ("0018|0050", "0018|0088"):  # how thick a lone slice is, else how far from others it was taken
        try:
            if reader.HasMetaDataKey(key) and float(reader.GetMetaData(key)) > 0:
                return float(reader.GetMetaData(key))
        except ValueError:
            continue
    return 1.0

"""Scans and label maps between disk and `Volume`: NIfTI, NRRD, MHA/MHD and DICOM series.

NIfTI goes through nibabel (stored axes and affine stay as they are); the rest through SimpleITK, whose LPS millimetres
become RAS. DICOM geometry is read from each slice's tags, because a series need not be a regular grid.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from HiEndMAECore.errors import InputError, UsageError

from .volume import Geometry, Structure, Volume

SUFFIXES = (".nii.gz", ".nii", ".hdr", ".img", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha")
_ROUNDING = 1e-3  # how far off a whole number a label may be: floats saved with a slope are
_NIFTI = (".nii.gz", ".nii", ".hdr", ".img")
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_NO_IMAGE = {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "FID", "DOC", "PLAN"}
_T = TypeVar("_T")


# -- names -------------------------------------------------------------------------------------------------------


def suffix_of(path: Path) -> str:
    """The scan suffix of a file, double ones included (".nii.gz"), in lower case; "" if it is none of `SUFFIXES`."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix) and name != suffix), "")


def is_scan_file(path: Path) -> bool:
    """Does the name of this file end like a volume's? (DICOM: see `is_dicom_file`.)"""
    return bool(suffix_of(Path(path)))


def is_dicom_file(path: Path) -> bool:
    """A DICOM file, by its mark at byte 128 (names and suffixes say nothing); a directory record is none."""
    if path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            file.seek(128)
            return file.read(4) == b"DICM" or path.suffix.lower() == ".dcm"
    except OSError:
        return False


def files_of(text: str) -> tuple[Path, ...]:
    """The files of one case: its channels joined by commas, or one path, which may have commas of its own."""
    return (Path(text),) if Path(text).exists() else tuple(Path(part) for part in text.split(","))


def case_name(path: Path) -> str:
    """NAME of `NAME_0000.nii.gz` (the first channel), `NAME.nii.gz` or a folder `NAME`; of a DICOM file, its folder's."""
    path = Path(path)
    if suffix := suffix_of(path):
        return path.name[: -len(suffix)].removesuffix("_0000") or path.name
    if path.suffix.lower() == ".dcm" or (path.is_file() and is_dicom_file(path)):
        path = path.absolute().parent
    return path.name or path.absolute().name or "case"


# -- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Loaded:
    """A file's voxels (X, Y, Z) in their own type, where they lie, and what was noted."""

    array: np.ndarray
    geometry: Geometry
    notes: tuple[dict[str, str], ...] = ()


def read_volume(
    path: str | Path | Sequence[str | Path],
    *,
    series: str | None = None,
    frame: int | None = None,
    name: str | None = None,
) -> Volume:
    """A scan, float32 (C, X, Y, Z).

    path: a file, a DICOM folder (or one of its files), or several: the channels of one case, on one grid.
    series: UID of the DICOM series when a folder has several. frame: which of a 4D file, from 0.
    name: the case's name, when not the file's (`case_name`).
    Raises InputError for whatever cannot be used as it is.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if not paths:
        raise InputError("file_missing", "No file was given for this scan.", "Name at least one.")
    channels, geometry, notes = [], None, []
    for one in paths:
        loaded = _load(one, series=series, frame=frame)
        _refuse_not_finite(loaded.array, one)
        with np.errstate(over="ignore"):
            array = loaded.array.astype(np.float32, copy=False)
        _refuse_not_finite(array, one)
        if geometry is None:
            geometry = loaded.geometry
        elif not geometry.matches(loaded.geometry):
            raise InputError(
                "channels_differ",
                f"{one} does not lie on the same voxel grid as {paths[0]}: {_difference(geometry, loaded.geometry)}.",
                "Resample the channels of a case onto the first one before using them together.",
            )
        channels.append(array)
        notes += [note for note in loaded.notes if note not in notes]
    assert geometry is not None
    stacked = channels[0][None] if len(channels) == 1 else np.stack(channels)
    return Volume(stacked, geometry, name or case_name(paths[0]), paths[0], tuple(notes))


def read_labels(
    path: str | Path, *, series: str | None = None, frame: int | None = None, allow_empty: bool = False
) -> Volume:
    """A label map, (1, X, Y, Z) of the smallest unsigned type that holds its values.

    allow_empty: a prediction may have found nothing; a label to learn from may not.
    """
    path = Path(path)
    loaded = _load(path, series=series, frame=frame)
    array = loaded.array
    _refuse_not_finite(array, path)
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
    kind = np.min_scalar_type(int(high))
    return Volume(array.astype(kind, copy=False)[None], loaded.geometry, case_name(path), path, loaded.notes)


def _load(path: Path, *, series: str | None, frame: int | None) -> _Loaded:
    if not path.exists():
        raise InputError("file_missing", f"There is no file or folder {path}.", "Check the path.")
    if path.is_dir():
        return _load_dicom(path, series, frame)
    if not os.access(path, os.R_OK):
        raise InputError("file_unreadable", f"The file {path} may not be read.", "Ask for permission, or copy it.")
    if path.stat().st_size == 0:
        raise InputError("file_empty", f"The file {path} is empty.", "Copy or export it again.")
    suffix = suffix_of(path)
    if suffix in _NIFTI:
        return _load_nifti(path, suffix, frame)
    if suffix:
        return _load_itk(path, frame)
    if is_dicom_file(path):
        return _load_dicom(path.absolute().parent, series, frame, like=path)
    raise _not_a_volume(path)


def _load_nifti(path: Path, suffix: str, frame: int | None) -> _Loaded:
    try:
        image: Any = nib.load(path, mmap=False)  # a mapped file could not be replaced on Windows
        if image.get_data_dtype().fields is not None or image.get_data_dtype().kind not in "iufb":
            raise _colour(path)
        # Whole numbers of 16 bits with a slope or an intercept fit into 32 bits; nibabel would take 64.
        scaled = (getattr(image.dataobj, "slope", 1), getattr(image.dataobj, "inter", 0)) != (1, 0)
        short = image.get_data_dtype().kind in "iu" and image.get_data_dtype().itemsize <= 2
        array = np.asanyarray(image.dataobj, dtype=np.float32 if scaled and short else None)
    except (EOFError, zlib.error) as error:
        raise _truncated(path) from error
    except gzip.BadGzipFile as error:
        raise _not_a_volume(path) from error
    except (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
    ) as error:
        if suffix == ".nii.gz" and _gzip_is_cut(path):
            raise _truncated(path) from error
        raise _not_a_volume(path) from error
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
        raise _truncated(path) from error
    if isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        unknown = int(image.header["sform_code"]) == 0 and int(image.header["qform_code"]) == 0
    else:
        unknown = True
    notes = []
    if unknown:
        notes.append(
            _note(
                "orientation_missing",
                f"{path.name} does not say how the patient lies; the usual default was taken.",
                "Check left and right before you rely on the result.",
            )
        )
    return _loaded(path, array, np.asarray(image.affine, dtype=np.float64), frame, notes)


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


def _load_itk(path: Path, frame: int | None) -> _Loaded:
    image = _quietly(lambda: sitk.ReadImage(str(path)), path)
    components, array = image.GetNumberOfComponentsPerPixel(), sitk.GetArrayFromImage(image)
    if components > 1:  # a list of volumes (Slicer's sequences) or colours: the last numpy axis
        if components in (3, 4) and array.dtype == np.uint8 and suffix_of(path) != ".seg.nrrd":
            raise _colour(path)
        array = np.moveaxis(array, -1, 0)
    if image.GetDimension() not in (3, 4):
        raise _flat(path)
    size = image.GetDimension()
    directions = np.array(image.GetDirection()).reshape(size, size)[:3, :3]
    lps = np.eye(4)
    lps[:3, :3] = directions * np.array(image.GetSpacing())[:3]
    lps[:3, 3] = image.GetOrigin()[:3]
    return _loaded(path, array.T, _LPS_RAS @ lps, frame, [])


def _loaded(path: Path, array: np.ndarray, affine: np.ndarray, frame: int | None, notes: list) -> _Loaded:
    """Checks that hold for every format: three dimensions or a chosen frame, and an affine that can be inverted."""
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim < 3:
        raise _flat(path)
    if 0 in array.shape:
        raise _not_a_volume(path)
    if array.ndim > 3:
        if array.ndim > 4 and array.shape[3] == 1:
            raise _colour(path)
        array = _frame_of(path, array.reshape(*array.shape[:3], -1), frame)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (edges <= 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-3:
        raise InputError(
            "geometry_degenerate",
            f"{path} has no usable voxel spacing or orientation in its header.",
            "Export the scan again from its DICOM files, or repair the header.",
        )
    x, y, z = array.shape
    return _Loaded(array, Geometry((x, y, z), affine), tuple(notes))


def _frame_of(path: Path, array: np.ndarray, frame: int | None) -> np.ndarray:
    count = array.shape[3]
    if frame is None:
        raise InputError(
            "four_dimensional", f"{path} is not one scan: it holds {count} frames.", f"Choose one: 0 to {count - 1}."
        )
    if not 0 <= frame < count:
        raise InputError(
            "frame_unknown", f"{path} has no frame {frame}: it holds {count}.", f"Choose one from 0 to {count - 1}."
        )
    return array[..., frame]


def _quietly(read: Callable[[], _T], path: Path) -> _T:
    """Run a reader of SimpleITK's without its warnings, and make its failure ours."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return read()
    except RuntimeError as error:
        text = str(error).lower()
        if any(word in text for word in ("not be read", "read failed", "truncated", "eof", "wrong # of bytes", "zlib")):
            raise _truncated(path) from error
        raise _not_a_volume(path) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _refuse_not_finite(array: np.ndarray, path: Path) -> None:
    if array.dtype.kind != "f":
        return
    # A finite sum means finite voxels, without a second array; only a suspicious one is counted.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(array.sum(dtype=np.float64))
    if suspicious and (count := int(np.count_nonzero(~np.isfinite(array)))):
        raise InputError(
            "not_finite",
            f"{path} has {count} voxels that are no finite numbers (NaN or infinite).",
            "Replace them, by 0 or by the value of air, before using the file.",
        )


def _not_a_volume(path: Path) -> InputError:
    return InputError(
        "not_a_volume",
        f"{path} is not a volume that can be read here.",
        "Give NIfTI, NRRD, MHA/MHD or a folder of DICOM files.",
    )


def _truncated(path: Path) -> InputError:
    return InputError("file_truncated", f"The file {path} is cut short or damaged.", "Copy or export it again.")


def _flat(path: Path) -> InputError:
    return InputError(
        "two_dimensional", f"{path} is a flat picture, not a volume.", "Give the whole stack of slices as one volume."
    )


def _colour(path: Path) -> InputError:
    return InputError(
        "colour_image",
        f"{path} has colours or vectors, not one number in each voxel.",
        "Export the scan itself, in grey values, not a rendering or a screenshot.",
    )


def _note(code: str, message: str, advice: str) -> dict[str, str]:
    return {"code": code, "message": message, "advice": advice}


# -- DICOM -------------------------------------------------------------------------------------------------------


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


def series_in(folder: Path) -> list[Series]:
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
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        _quietly(reader.ReadImageInformation, file)
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


def _load_dicom(folder: Path, series: str | None, frame: int | None, *, like: Path | None = None) -> _Loaded:
    groups = _grouped(folder)
    if not groups and like is not None:
        raise _not_a_volume(like)
    if not groups:
        raise InputError(
            "no_dicom", f"The folder {folder} holds no DICOM images.", "Give the folder that has the slices in it."
        )
    if series is None and like is not None:
        series = next((s[0].uid for s in groups if any(one.path.name == like.name for one in s)), None)
        if series is None:
            raise _not_a_volume(like)
    if series is not None:
        groups = [slices for slices in groups if slices[0].uid == series]
        if not groups:
            raise InputError(
                "series_unknown", f"The folder {folder} has no series {series}.", _listing(series_in(folder))
            )
    if len(groups) > 1:
        raise InputError(
            "several_series",
            f"The folder {folder} holds {len(groups)} DICOM series.",
            "Choose one by its UID: " + _listing([_describe(slices) for slices in groups]),
        )
    slices, notes = groups[0], []
    if max(one.components for one in slices) > 1:
        raise _colour(slices[0].path)
    if any(len(one.size) > 2 and one.size[2] > 1 for one in slices):  # enhanced DICOM: one file is the volume
        if len(slices) > 1:
            raise InputError(
                "dicom_multiframe",
                f"The series in {folder} has several files of many frames each.",
                "Convert it to NIfTI or NRRD first (3D Slicer, dcm2niix).",
            )
        return _load_itk(slices[0].path, frame)
    if any(one.position is None or one.axes is None for one in slices):
        placed = [one for one in slices if one.position is not None and one.axes is not None]
        if not placed:
            raise _flat(slices[0].path)
        notes.append(_left_out(len(slices) - len(placed), "say nothing of their position"))
        slices = placed
    slices = _one_stack(slices, notes)
    slices = _one_frame(folder, slices, frame, notes)
    geometry = _stack_geometry(slices, notes)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(one.path) for one in slices])
    reader.SetOutputPixelType(sitk.sitkFloat32)  # slices of one series may have different rescale slopes
    array = sitk.GetArrayFromImage(_quietly(lambda: reader.Execute(), folder))
    return _Loaded(array.T, geometry, tuple(notes))


def _listing(found: Sequence[Series]) -> str:
    return "; ".join(
        f"{one.uid or '(no UID)'} ({one.description or one.modality or 'no description'}, {one.shape[2]} slices)"
        for one in found
    )


def _left_out(count: int, why: str) -> dict[str, str]:
    return _note(
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
        return Geometry(shape, _LPS_RAS @ lps)

    along = (origins[-1] - origins[0]) / np.linalg.norm(origins[-1] - origins[0])
    degrees = float(np.degrees(np.arccos(np.clip(along @ normal, -1.0, 1.0))))
    if degrees > 0.1:
        notes.append(
            _note(
                "gantry_tilt",
                f"The slices are tilted by {degrees:.1f} degrees against their stacking direction (gantry tilt).",
                "The scan was straightened for the model, and the result put back onto the slices as they are stored.",
            )
        )
    gaps = np.linalg.norm(steps, axis=1)
    if gaps.max() - gaps.min() > max(0.05, 0.01 * gap):
        notes.append(
            _note(
                "uneven_slices",
                f"The gaps between slices are uneven: {gaps.min():.1f} to {gaps.max():.1f} mm.",
                "The true positions were used; lengths and volumes measured across slices on the stored grid are off.",
            )
        )
    return Geometry(shape, _LPS_RAS @ lps, origins * [-1.0, -1.0, 1.0])


def _thickness(one: _Slice) -> float:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(one.path))
    _quietly(reader.ReadImageInformation, one.path)
    for key in ("0018|0050", "0018|0088"):  # how thick a lone slice is, else how far from others it was taken
        try:
            if reader.HasMetaDataKey(key) and float(reader.GetMetaData(key)) > 0:
                return float(reader.GetMetaData(key))
        except ValueError:
            continue
    return 1.0


# -- one grid for scan and labels --------------------------------------------------------------------------------


def check_same_geometry(image: Volume, labels: Volume) -> None:
    """InputError('geometry_mismatch') unless both have the same voxels in the same order (see also `on_grid_of`)."""
    if not image.geometry.matches(labels.geometry):
        raise _mismatch(image, labels)


def on_grid_of(image: Volume, labels: Volume) -> Volume:
    """`labels` stored exactly as `image` is: axes permuted or flipped, and padded with background where a label file
    covers only a part (3D Slicer crops its .seg.nrrd files). InputError('geometry_mismatch') if voxels would have to be
    interpolated, or if labelled ones lie outside the scan."""
    if image.geometry.matches(labels.geometry):
        return labels
    matrix = np.linalg.inv(image.affine) @ labels.affine
    whole = np.rint(matrix)
    spans = np.abs(matrix - whole)[:3] @ [*labels.shape, 1]
    if spans.max() > 0.05 or (np.abs(whole[:3, :3]).sum(axis=0) != 1).any():
        raise _mismatch(image, labels)
    order = [int(np.abs(row).argmax()) for row in whole[:3, :3]]
    if sorted(order) != [0, 1, 2]:
        raise _mismatch(image, labels)
    turned = labels.array[0].transpose(order)
    flips = [bool(whole[row, axis] < 0) for row, axis in enumerate(order)]
    turned = turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in flips)]
    start = [
        int(whole[row, 3]) - (size - 1 if flip else 0) for row, (size, flip) in enumerate(zip(turned.shape, flips))
    ]
    result = np.zeros(image.shape, turned.dtype)
    into = [(max(0, s), min(n, s + size)) for s, n, size in zip(start, image.shape, turned.shape)]
    if all(low < high for low, high in into):
        taken = turned[tuple(slice(low - s, high - s) for (low, high), s in zip(into, start))]
        result[tuple(slice(*span) for span in into)] = taken
    if np.count_nonzero(result) != np.count_nonzero(turned):
        raise _mismatch(image, labels)
    return Volume(result[None], image.geometry, labels.name, labels.source, labels.notes)


def _mismatch(image: Volume, labels: Volume) -> InputError:
    return InputError(
        "geometry_mismatch",
        f"{labels.source or labels.name} does not lie on the voxels of {image.source or image.name}: "
        f"{_difference(image.geometry, labels.geometry)}.",
        "Resample the label map onto the scan with nearest neighbour, or export it again with the scan as reference.",
    )


def _difference(one: Geometry, other: Geometry) -> str:
    if one.shape != other.shape:
        return f"{'x'.join(map(str, other.shape))} voxels instead of {'x'.join(map(str, one.shape))}"
    last = np.array(one.shape) - 1
    ends = np.array([[x, y, z, 1] for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    apart = np.linalg.norm((ends @ (one.affine - other.affine).T)[:, :3], axis=1).max()
    return f"its corners lie up to {apart:.3g} mm apart"


# -- writing -----------------------------------------------------------------------------------------------------


def write_labels(
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
        meta = _segmentation_header(labels, structures)
    _write(path, labels.astype(kind, copy=False), geometry, meta)


def write_scalar(path: str | Path, array: np.ndarray, geometry: Geometry) -> None:
    """A map of numbers (X, Y, Z), float32, in the format of the file's suffix, written beside and renamed."""
    _write(Path(path), array.astype(np.float32, copy=False), geometry, {})


def _write(path: Path, array: np.ndarray, geometry: Geometry, meta: Mapping[str, str]) -> None:
    suffix = suffix_of(path)
    if suffix not in WRITTEN_SUFFIXES:
        raise UsageError(
            "format_unknown", f"Results cannot be written as {path.name}.", f"Use one of {', '.join(WRITTEN_SUFFIXES)}."
        )
    if array.shape != geometry.shape:
        raise ValueError(f"array has shape {array.shape}, its geometry {geometry.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".part.{path.name}")  # hidden; what a killed run leaves, the next one writes over
    try:
        if suffix in _NIFTI:
            nib.save(_as_nifti(array, geometry.affine), beside)
        else:
            sitk.WriteImage(_as_itk(array, geometry.affine, meta), str(beside), True)
        os.replace(beside, path)
    except RuntimeError as error:  # SimpleITK's only kind: no space, no permission
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _as_nifti(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code=2)
    try:
        image.set_qform(affine, code=1, strip_shears=False)
    except nib.spatialimages.HeaderDataError:  # a shear: only the sform can say it
        image.set_qform(None, code=0)
    image.header.set_xyzt_units("mm")
    return image


def _as_itk(array: np.ndarray, affine: np.ndarray, meta: Mapping[str, str]) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    lps = _LPS_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for key, value in meta.items():
        image.SetMetaData(key, value)
    return image


def _segmentation_header(labels: np.ndarray, structures: Sequence[Structure]) -> dict[str, str]:
    """The keys by which 3D Slicer's segmentation reader (vtkMRMLSegmentationStorageNode) knows its segments."""
    if not structures:
        structures = [Structure(int(v), f"Segment_{int(v)}") for v in _values(labels)]
    x, y, z = labels.shape
    extent = f"0 {x - 1} 0 {y - 1} 0 {z - 1}"
    header = {
        "Segmentation_MasterRepresentation": "Binary labelmap",  # Slicer 5.0 to 5.2 ask for this name
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for index, one in enumerate(structures):
        tags = terminology_tag(one.terminology)
        header |= {
            f"Segment{index}_ID": f"Segment_{one.value}",
            f"Segment{index}_Name": " ".join(one.name.split()),
            f"Segment{index}_NameAutoGenerated": "0",
            f"Segment{index}_Color": " ".join(f"{part / 255:.6g}" for part in one.colour),
            f"Segment{index}_ColorAutoGenerated": "0",
            f"Segment{index}_LabelValue": str(one.value),
            f"Segment{index}_Layer": "0",
            f"Segment{index}_Extent": extent,
        }
        if tags:
            header[f"Segment{index}_Tags"] = f"TerminologyEntry:{tags}|"
    return header


def _values(labels: np.ndarray) -> Iterable[int]:
    return [int(value) for value in np.unique(labels) if value != 0]


def terminology_tag(entry: Mapping[str, Any]) -> str:
    """3D Slicer's one-line form of a terminology entry: `context~category~type~modifier~context~region~modifier`, each
    code as scheme^value^meaning. "" if there is no type."""

    def code(key: str) -> str:
        part = entry.get(key) or {}
        return "^".join(str(part.get(name, "")) for name in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning"))

    if not entry.get("type"):
        return ""
    return "~".join(
        [
            str(entry.get("contextName", "Segmentation category and type - 3D Slicer General Anatomy list")),
            code("category"),
            code("type"),
            code("typeModifier"),
            str(entry.get("anatomicContextName", "Anatomic codes - DICOM master list")),
            code("anatomicRegion"),
            code("anatomicRegionModifier"),
        ]
    )

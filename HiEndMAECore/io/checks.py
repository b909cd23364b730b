"""Checks that hold for every format, and the typed errors that all readers raise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from HiEndMAECore.errors import InputError

from .volume import Geometry

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class LoadedImage:
    """Voxels (X, Y, Z) in the type of their file, with their geometry and the warnings of the reader."""

    array: np.ndarray
    geometry: Geometry
    notes: tuple[dict[str, str], ...] = ()


def check_loaded(path: Path, array: np.ndarray, affine: np.ndarray, frame: int | None, notes: list) -> LoadedImage:
    """Check what holds for every format: three dimensions or a chosen frame, and an affine that can be inverted.

    Args:
        path: The file, for messages.
        array: Voxels (X, Y, Z) or (X, Y, Z, frames).
        affine: (4, 4), from voxel index to RAS mm.
        frame: Which frame of a 4D file, counted from 0.
        notes: Warnings of the reader so far.

    Returns:
        The volume with its geometry.

    Raises:
        InputError: `two_dimensional`, `not_a_volume`, `colour_image`, `four_dimensional`, `frame_unknown` or
            `geometry_degenerate`.
    """
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim < 3:
        raise two_dimensional(path)
    if 0 in array.shape:
        raise not_a_volume(path)
    if array.ndim > 3:
        if array.ndim > 4 and array.shape[3] == 1:
            raise color_image(path)
        array = _select_frame(path, array.reshape(*array.shape[:3], -1), frame)
    edges = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (edges <= 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / edges)) < 1e-3:
        raise InputError(
            "geometry_degenerate",
            f"{path} has no usable voxel spacing or orientation in its header.",
            "Export the scan again from its DICOM files, or repair the header.",
        )
    x, y, z = array.shape
    return LoadedImage(array, Geometry((x, y, z), affine), tuple(notes))


def _select_frame(path: Path, array: np.ndarray, frame: int | None) -> np.ndarray:
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


def check_finite(array: np.ndarray, path: Path) -> None:
    """Raise `InputError` `not_finite` when a voxel is NaN or infinite."""
    if array.dtype.kind != "f":
        return
    # A finite sum means finite voxels, without a second array; only a suspicious one is counted.
    with np.errstate(over="ignore", invalid="ignore"):
        suspicious = not np.isfinite(array.sum(dtype=np.float64))
    if suspicious and (count := int(np.count_nonzero(~np.isfinite(array)))):
        raise InputError(
            "not_finite",
            f"{path} has {count} voxels that are not finite numbers (NaN or infinite).",
            "Replace them, by 0 or by the value of air, before using the file.",
        )


def not_a_volume(path: Path) -> InputError:
    """Return the error for a file of no known format."""
    return InputError(
        "not_a_volume",
        f"{path} is not a volume that can be read here.",
        "Give NIfTI, NRRD, MHA/MHD or a folder of DICOM files.",
    )


def truncated(path: Path) -> InputError:
    """Return the error for a file that ends early or is damaged."""
    return InputError("file_truncated", f"The file {path} is cut short or damaged.", "Copy or export it again.")


def two_dimensional(path: Path) -> InputError:
    """Return the error for a file with fewer than three dimensions."""
    return InputError(
        "two_dimensional", f"{path} is a flat picture, not a volume.", "Give the whole stack of slices as one volume."
    )


def color_image(path: Path) -> InputError:
    """Return the error for a file with several values in each voxel."""
    return InputError(
        "colour_image",
        f"{path} has colours or vectors, not one number in each voxel.",
        "Export the scan itself, in grey values, not a rendering or a screenshot.",
    )


def note(code: str, message: str, advice: str) -> dict[str, str]:
    """Return a warning of a reader, as `Volume.notes` holds them."""
    return {"code": code, "message": message, "advice": advice}

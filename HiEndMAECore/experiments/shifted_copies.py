"""Shifted copies of a scan, whose reference is known: intensities, noise, tilt, crops and thick slices.

The parameters are drawn first, as plain JSON, and then applied. A copy lies on a grid of its own; label maps are resampled
to it by the same map as the scan, so that results on the scan and on its copy are scored on the same voxels.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing.orientation import ras_axes, translate_affine
from HiEndMAECore.preprocessing.resampling import antialias, resample_affine, resample_label_map

TILT_DEGREES = 15.0
SLAB_MM = 40.0
SLAB_ABOVE_MM = 120.0  # scans that are deeper get a slab
THICK_MM = 5.0
THICK_BELOW_MM = 3.0  # scans with thinner slices get thick ones
_GAIN = (0.05, 0.10)  # change of the contrast, up or down
_OFFSET_SHARE = (0.02, 0.04)  # of the range between these percentiles, up or down
_NOISE_SHARE = (0.02, 0.04)
_PERCENTILES = (1.0, 99.0)
_CROP_SHARE = (0.70, 0.80)  # of each in-plane axis that stays
_ANISOTROPIC = 1.2  # the slice axis is the coarsest one, where it is so much coarser than the finest

Parameters = dict[str, Any]


def draw_copies(scan: Volume, labels: Volume, *, seed: int) -> dict[str, Parameters]:
    """Draw the parameters of every shifted copy that a scan can have.

    Args:
        scan: The scan.
        labels: Its reference, on the same grid; a slab shows some of its structures.
        seed: Seed; the copies of a case do not depend on other cases.

    Returns:
        Plain JSON parameters by the name of the copy.
    """
    axis = find_slice_axis(scan.geometry)
    drawers: dict[str, Callable[[np.random.Generator], Parameters]] = {
        "intensity": lambda rng: {"gain": 1 + _signed(rng, _GAIN), "offset_share": _signed(rng, _OFFSET_SHARE)},
        "noise": lambda rng: {"share": float(rng.uniform(*_NOISE_SHARE)), "seed": int(rng.integers(2**31))},
        "tilt": lambda rng: {"degrees": float(rng.choice([-TILT_DEGREES, TILT_DEGREES]))},
        "crop": lambda rng: {"box": _draw_crop(rng, scan.shape, axis)},
    }
    if scan.shape[axis] * scan.spacing[axis] > SLAB_ABOVE_MM:
        drawers["slab"] = lambda rng: {"box": _draw_slab(rng, labels, axis)}
    if scan.spacing[axis] < THICK_BELOW_MM:
        drawers["thick_slices"] = lambda _: {"axis": axis, "spacing_mm": THICK_MM}
    generators = {name: np.random.default_rng([seed, zlib.crc32(f"{scan.name} {name}".encode())]) for name in drawers}
    return {name: drawer(generators[name]) for name, drawer in drawers.items()}


def shift_scan(scan: Volume, parameters: Parameters) -> Volume:
    """Return the shifted copy of a scan.

    Args:
        scan: The scan (C, X, Y, Z).
        parameters: Of one copy, from `draw_copies`.

    Returns:
        The copy, float32, on a grid of its own. What a tilt brings in from outside has the smallest value of its channel.
    """
    if "gain" in parameters or "share" in parameters:
        return replace(scan, array=np.stack([_shift_intensities(c, parameters, i) for i, c in enumerate(scan.array)]))
    matrix, geometry = _map_of_copy(scan.geometry, parameters)
    # A tilt keeps the spacing, so only thick slices are averages of thin ones.
    ratios = [float(step) for step in np.diag(matrix)[:3]] if "axis" in parameters else [1.0] * 3
    channels = [
        resample_affine(
            antialias(channel, ratios).astype(np.float32, copy=False),
            matrix,
            geometry.shape,
            outside=float(channel.min()),
            dtype=sitk.sitkFloat32,
        )
        for channel in scan.array
    ]
    return replace(scan, array=np.stack(channels), geometry=geometry)


def shift_labels(labels: Volume, parameters: Parameters) -> Volume:
    """Return a label map of the scan on the grid of a copy: a reference, or a result on the scan itself."""
    if "gain" in parameters or "share" in parameters:
        return labels
    matrix, geometry = _map_of_copy(labels.geometry, parameters)
    return replace(labels, array=resample_label_map(labels.array[0], matrix, geometry.shape)[None], geometry=geometry)


def retained_shares(reference: Volume, copy: Volume) -> dict[int, float]:
    """Return the share of each structure's volume that a copy still shows.

    Args:
        reference: Label map of the scan.
        copy: Label map of the copy.
    """
    values, counts = np.unique(reference.array, return_counts=True)
    copied = dict(zip(*np.unique(copy.array, return_counts=True)))
    ratio = copy.geometry.voxel_ml / reference.geometry.voxel_ml
    return {
        int(value): float(copied.get(value, 0)) * ratio / int(count) for value, count in zip(values, counts) if value
    }


def find_slice_axis(geometry: Geometry) -> int:
    """Return the stored axis across slices: the coarsest one, or in nearly cubic voxels that next to superior."""
    spacing = geometry.spacing
    if max(spacing) > _ANISOTROPIC * min(spacing):
        return int(np.argmax(spacing))
    return int(np.abs(geometry.affine[2, :3] / np.asarray(spacing)).argmax())


def _map_of_copy(geometry: Geometry, parameters: Mapping[str, Any]) -> tuple[np.ndarray, Geometry]:
    """Return the map (4, 4) from voxels of the copy to voxels of the scan, and the copy's grid."""
    if "degrees" in parameters:
        return np.linalg.inv(geometry.affine) @ _tilt(geometry, parameters["degrees"]) @ geometry.affine, geometry
    if "box" in parameters:
        (x0, x1), (y0, y1), (z0, z1) = parameters["box"]
        matrix, shape = translate_affine(np.eye(4), (x0, y0, z0)), (x1 - x0, y1 - y0, z1 - z0)
        return matrix, Geometry(shape, geometry.affine @ matrix)
    axis, ratio = parameters["axis"], parameters["spacing_mm"] / geometry.spacing[parameters["axis"]]
    sizes = list(geometry.shape)
    sizes[axis] = max(1, math.floor(sizes[axis] / ratio))
    matrix = np.eye(4)
    matrix[axis, axis] = ratio
    matrix[axis, 3] = (geometry.shape[axis] - 1) / 2 - (sizes[axis] - 1) / 2 * ratio  # both grids have one center
    return matrix, Geometry((sizes[0], sizes[1], sizes[2]), geometry.affine @ matrix)


def _tilt(geometry: Geometry, degrees: float) -> np.ndarray:
    """Return the rotation (4, 4) in RAS mm about the left-right axis through the center of a grid."""
    axis = ras_axes(geometry.affine)[:, 0]
    cross = np.cross(np.eye(3), axis)
    angle = math.radians(degrees)
    rotation = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross  # Rodrigues' formula
    center = (geometry.affine @ [*((np.array(geometry.shape) - 1) / 2), 1.0])[:3]
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = center - rotation @ center
    return matrix


def _shift_intensities(channel: np.ndarray, parameters: Mapping[str, Any], index: int) -> np.ndarray:
    """Return a channel (X, Y, Z) with another gain and offset, or with noise. Its smallest value is the fixed point."""
    low, high = np.percentile(channel, _PERCENTILES)
    if "gain" in parameters:
        smallest = channel.min()
        shifted = smallest + parameters["gain"] * (channel - smallest) + parameters["offset_share"] * (high - low)
    else:
        rng = np.random.default_rng([parameters["seed"], index])
        shifted = channel + rng.normal(0.0, parameters["share"] * (high - low), channel.shape)
    return shifted.astype(np.float32)


def _draw_crop(rng: np.random.Generator, shape: tuple[int, int, int], axis: int) -> list[list[int]]:
    """Return the first and end voxel along each axis of a part in the plane of the slices."""
    box = []
    for index, length in enumerate(shape):
        size = length if index == axis else max(1, round(length * rng.uniform(*_CROP_SHARE)))
        start = int(rng.integers(length - size + 1))
        box.append([start, start + size])
    return box


def _draw_slab(rng: np.random.Generator, labels: Volume, axis: int) -> list[list[int]]:
    """Return the box of a slab whose middle slice has structures, where the label map has any."""
    length = labels.shape[axis]
    size = max(1, round(SLAB_MM / labels.spacing[axis]))
    others = tuple(other for other in range(3) if other != axis)
    labelled = np.flatnonzero(labels.array[0].any(axis=others))
    middle = int(rng.choice(labelled)) if len(labelled) else length // 2
    start = min(max(0, middle - size // 2), length - size)
    box = [[0, int(length)] for length in labels.shape]
    box[axis] = [start, start + size]
    return box


def _signed(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """Return a number between the limits, up or down."""
    return float(rng.choice([-1.0, 1.0]) * rng.uniform(*limits))

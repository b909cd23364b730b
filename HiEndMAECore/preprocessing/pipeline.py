"""Preprocessing of a scan for a network, and resampling of results to the scan's original grid.

Order: intensity limits over the whole scan, crop to the body, normalize, low-pass filter against aliasing, resample to a
regular grid close to the R, A and S axes. Resampling back needs the network's grid and the scan's own geometry alone
(`NetworkGrid`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from HiEndMAECore.io.volume import Geometry, Volume

from .cropping import body_bounding_box
from .image_resampling import resample_parallel_image
from .intensity import IntensityNormalization, parse_number
from .orientation import is_parallel, ras_axes, regular_grid, regular_runs, translate_affine
from .resampling import antialias, resample_affine, resample_from_stack, resample_label_map, resample_to_stack

_MAX_LABEL = 65535
_ORTHOGONAL_TOLERANCE = 1e-3
Box = Sequence[tuple[int, int]]  # first and end voxel along each stored axis


@dataclass(frozen=True)
class PreprocessingPlan:
    """What a model expects of its scans.

    Attributes:
        spacing: Spacing of the network's grid in mm along R, A and S.
        normalization: Intensity normalization.
    """

    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    normalization: IntensityNormalization = IntensityNormalization()

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise ValueError(f"spacing is {self.spacing}, must be three positive numbers (mm along R, A, S)")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, as model.json and the manifest of a store hold it."""
        return {"spacing": list(self.spacing), "normalisation": self.normalization.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PreprocessingPlan:
        """Return the plan that `to_json` described.

        Raises:
            ValueError: A key is absent or unknown, or a value is impossible; the message names it.
        """
        if not isinstance(data, Mapping) or set(data) != {"spacing", "normalisation"}:
            raise ValueError(f"a preprocessing plan needs exactly 'spacing' and 'normalisation', got {data!r}")
        spacing = data["spacing"]
        if not isinstance(spacing, Sequence) or isinstance(spacing, str) or len(spacing) != 3:
            raise ValueError(f"spacing is {spacing!r}, must be three positive numbers (mm along R, A, S)")
        r, a, s = (parse_number(step, "spacing") for step in spacing)
        return cls((r, a, s), IntensityNormalization.from_json(data["normalisation"]))


@dataclass(frozen=True, eq=False)
class NetworkGrid:
    """The grid that a network works on, and the grid of the scan.

    Attributes:
        affine: (4, 4), from voxels of the network's grid to RAS mm.
        original: The scan's own geometry.
    """

    affine: np.ndarray
    original: Geometry


@dataclass(frozen=True, eq=False)
class PreprocessedScan(NetworkGrid):
    """A scan on the network's grid.

    Attributes:
        array: float32 (C, H, W, D) in [0, 1], axes close to R, A and S.
    """

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (H, W, D)."""
        h, w, d = self.array.shape[1:]
        return h, w, d


def preprocess(volume: Volume, plan: PreprocessingPlan, *, crop: bool = True) -> PreprocessedScan:
    """Normalize a scan and resample it to the plan's regular grid.

    The grid keeps the directions of the scan, permuted and flipped to the nearest of R, A and S and made orthogonal. An
    irregular stack of slices is interpolated between the true positions of its slices.

    Args:
        volume: The scan (C, X, Y, Z); float32, or integers of up to 16 bits.
        plan: Spacing of the network's grid and intensity normalization.
        crop: Crop to the body with a margin first.

    Returns:
        The scan on the network's grid.
    """
    original = volume.geometry
    hounsfield = plan.normalization.kind == "window"
    box = body_bounding_box(volume, hounsfield=hounsfield) if crop else [(0, n) for n in original.shape]
    affine, shape = regular_grid(original, plan.spacing, box=box)
    ratios = _spacing_ratios(original, plan.spacing)
    span = _resampled_span(original, box, ratios)
    source = _part_of_grid(original, span)
    runs = regular_runs(source)
    output_to_input = np.linalg.inv(runs[0].affine) @ affine
    parallel = len(runs) == 1 and is_parallel(output_to_input, shape)
    channels = []
    for channel, limits in zip(volume.array, plan.normalization.limits(volume.array)):
        part = channel[tuple(slice(low, high) for low, high in span)]
        normalize = functools.partial(_normalize_channel, plan.normalization, limits)
        if parallel:
            resampled = resample_parallel_image(part, output_to_input, shape, ratios=ratios, normalize=normalize)
        else:
            part = antialias(normalize(part), ratios)
            resampled = resample_from_stack(part, source, affine, shape, resample_affine)
        channels.append(resampled)
    return PreprocessedScan(affine=affine, original=original, array=np.stack(channels))


def _normalize_channel(normalization: IntensityNormalization, limits: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Return a part (X, Y, Z) of a channel with the intensities `limits` at 0 and 1."""
    return normalization.apply(part[None], limits=limits[None])[0]


def _spacing_ratios(original: Geometry, spacing: Sequence[float]) -> list[float]:
    """Return target spacing over own spacing along each stored axis."""
    axes = ras_axes(original.affine)
    directions = original.affine[:3, :3] / np.linalg.norm(original.affine[:3, :3], axis=0)
    closest = np.abs(axes.T @ directions).argmax(axis=0)  # the grid's axis next to each stored one
    return [float(ratio) for ratio in np.asarray(spacing, dtype=np.float64)[closest] / original.spacing]


def _resampled_span(original: Geometry, box: Box, ratios: Sequence[float]) -> list[tuple[int, int]]:
    """Return the voxels that the grid and the low-pass filter can reach: only these are worked on.

    For an irregular stack, or a grid that is not orthogonal, these are all voxels.
    """
    if original.slice_origins is not None or not _is_orthogonal(original.affine):
        return [(0, n) for n in original.shape]
    reach = np.ceil(2.0 * np.maximum(ratios, 1.0)).astype(int) + 1
    return [(max(low - r, 0), min(high + r, n)) for (low, high), r, n in zip(box, reach, original.shape)]


def _part_of_grid(original: Geometry, span: Box) -> Geometry:
    """Return the geometry of a part of a grid; an irregular stack is only ever used whole."""
    x, y, z = (high - low for low, high in span)
    return Geometry((x, y, z), translate_affine(original.affine, [low for low, _ in span]), original.slice_origins)


def _is_orthogonal(affine: np.ndarray) -> bool:
    """Return whether the axes of a grid are perpendicular to each other."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() < _ORTHOGONAL_TOLERANCE)


def preprocess_labels(labels: Volume, scan: PreprocessedScan, *, values: Sequence[int] | None = None) -> np.ndarray:
    """Resample a label map to the network's grid.

    Args:
        labels: The label map; it may have a grid of its own.
        scan: The preprocessed scan that it belongs to.
        values: Labels to retain, the others become background; None retains all.

    Returns:
        (H, W, D) uint8, or uint16 if a label needs it.

    Raises:
        ValueError: A label is above 65535.
    """
    array, original = labels.array[0], labels.geometry
    if original.slice_origins is None and original.matches(scan.original):
        original = scan.original  # a label file cannot hold the true positions of slices, the scan can
    if values is not None:
        array = np.where(np.isin(array, list(values)), array, 0)
    highest = int(array.max(initial=0))
    if highest > _MAX_LABEL:
        raise ValueError(f"label value {highest} is above {_MAX_LABEL}")
    array = array.astype(np.uint8 if highest < 256 else np.uint16, copy=False)
    return resample_from_stack(array, original, scan.affine, scan.shape, resample_label_map)


def resample_labels_to_original(labels: np.ndarray, grid: NetworkGrid) -> np.ndarray:
    """Resample labels from the network's grid to the scan's own voxels.

    Args:
        labels: Label map (H, W, D) on the network's grid.
        grid: That grid and the scan's own.

    Returns:
        The label map (X, Y, Z) of the same type; background outside of the network's grid. The first axis is the fastest in
        memory, as in the files.
    """
    return resample_to_stack(labels, grid.affine, grid.original, functools.partial(resample_label_map, order="F"))


def resample_scalar_to_original(array: np.ndarray, grid: NetworkGrid, outside: float = 0.0) -> np.ndarray:
    """Resample numbers, such as entropy, linearly from the network's grid to the scan's own voxels.

    Args:
        array: Numbers (H, W, D) on the network's grid.
        grid: That grid and the scan's own.
        outside: Value of voxels outside of the network's grid.

    Returns:
        float32 (X, Y, Z).
    """

    def sampler(part: np.ndarray, matrix: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        return resample_affine(part, matrix, shape, outside=outside)

    return resample_to_stack(array.astype(np.float32, copy=False), grid.affine, grid.original, sampler)

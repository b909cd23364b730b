"""From a scan to what the network sees, and back: normalised intensities on a regular grid close to R, A, S.

Order: limits of the intensities over the whole scan, crop to the body, normalise, smooth against aliasing, resample.
The way back needs only the network grid's affine and the scan's own geometry (`Grid`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.preprocessing import resampling as geo

from .cropping import body_bounding_box
from .intensity import IntensityNormalization, _number
from .orientation import ras_axes, regular_grid, translate_affine


@dataclass(frozen=True)
class PreprocessingPlan:
    """What a model asks of its scans: `spacing` in mm along the R, A and S axes, and the intensities."""

    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    normalization: IntensityNormalization = IntensityNormalization()

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise ValueError(f"spacing is {self.spacing}, must be three positive numbers (mm along R, A, S)")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"spacing": list(self.spacing), "normalisation": self.normalization.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PreprocessingPlan:
        """The reverse of `to_json`; ValueError names what is wrong."""
        if not isinstance(data, Mapping) or set(data) != {"spacing", "normalisation"}:
            raise ValueError(f"a preparation plan needs exactly 'spacing' and 'normalisation', got {data!r}")
        spacing = data["spacing"]
        if not isinstance(spacing, Sequence) or isinstance(spacing, str) or len(spacing) != 3:
            raise ValueError(f"spacing is {spacing!r}, must be three positive numbers (mm along R, A, S)")
        r, a, s = (_number(step, "spacing") for step in spacing)
        return cls((r, a, s), IntensityNormalization.from_json(data["normalisation"]))


@dataclass(frozen=True)
class NetworkGrid:
    """Enough to bring results home: `affine` (4, 4) of the network grid -> RAS mm, and the scan's own geometry."""

    affine: np.ndarray
    original: Geometry


@dataclass(frozen=True)
class PreprocessedScan(NetworkGrid):
    """A scan as the network sees it: `array` float32 (C, H, W, D) in [0, 1], axes close to R, A, S."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w, d = self.array.shape[1:]
        return h, w, d


def preprocess(volume: Volume, plan: PreprocessingPlan, *, crop: bool = True) -> PreprocessedScan:
    """Scan -> normalised, resampled to the plan's regular grid; cropped to the body (and a margin) if `crop`.

    The grid keeps the scan's own directions, permuted and flipped to the nearest of R, A, S and made orthogonal; an
    irregular stack of slices is interpolated between its slices' true positions.
    """
    native = volume.geometry
    limits = plan.normalization.limits(volume.array)
    box = (
        body_bounding_box(volume, hounsfield=plan.normalization.kind == "window")
        if crop
        else [(0, n) for n in native.shape]
    )
    affine, shape = regular_grid(native, plan.spacing, box=box)

    # What the grid and the smoothing can reach, and no more, is worked on. An irregular stack keeps all its slices.
    axes = ras_axes(native.affine)
    own = native.affine[:3, :3] / np.linalg.norm(native.affine[:3, :3], axis=0)
    closest = np.abs(axes.T @ own).argmax(axis=0)  # the grid's axis next to each stored one
    ratios = np.asarray(plan.spacing)[closest] / native.spacing
    reach = np.ceil(2.0 * np.maximum(ratios, 1.0)).astype(int) + 1
    span = [(max(low - r, 0), min(high + r, n)) for (low, high), r, n in zip(box, reach, native.shape)]
    if native.slice_origins is not None or not _is_orthogonal(native.affine):
        span = [(0, n) for n in native.shape]
    source = Geometry(
        (span[0][1] - span[0][0], span[1][1] - span[1][0], span[2][1] - span[2][0]),
        translate_affine(native.affine, [low for low, _ in span]),
        native.slice_origins,
    )
    channels = []
    for channel, limit in zip(volume.array, limits):
        part = channel[tuple(slice(*s) for s in span)]
        part = geo.antialias(plan.normalization.apply(part[None], limits=limit[None])[0], ratios)
        channels.append(geo.resample_from_stack(part, source, affine, shape, geo.resample_affine))
    return PreprocessedScan(affine=affine, original=native, array=np.stack(channels))


def _is_orthogonal(affine: np.ndarray) -> bool:
    own = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(own.T @ own - np.eye(3)).max() < 1e-3)


def preprocess_labels(labels: Volume, prepared: PreprocessedScan, *, values: Sequence[int] | None = None) -> np.ndarray:
    """A label map on the network grid: uint8, or uint16 if needed, (H, W, D).

    values: those to keep, the others become background; None keeps all. The label map may have its own grid.
    """
    array, native = labels.array[0], labels.geometry
    if native.slice_origins is None and native.matches(prepared.original):
        native = prepared.original  # a file cannot say where the slices truly lie; the scan it was drawn on can
    if values is not None:
        array = np.where(np.isin(array, list(values)), array, 0)
    highest = int(array.max(initial=0))
    if highest > 65535:
        raise ValueError(f"label value {highest} is above 65535")
    array = array.astype(np.uint8 if highest < 256 else np.uint16, copy=False)
    return geo.resample_from_stack(array, native, prepared.affine, prepared.shape, geo.resample_label_map)


def resample_labels_to_original(labels: np.ndarray, prepared: NetworkGrid) -> np.ndarray:
    """Labels (H, W, D) on the network grid -> the scan's own voxels (X, Y, Z), same type; background outside."""
    return geo.resample_to_stack(labels, prepared.affine, prepared.original, geo.resample_label_map)


def resample_scalar_to_original(array: np.ndarray, prepared: NetworkGrid, outside: float = 0.0) -> np.ndarray:
    """A map (H, W, D) of numbers, such as entropy -> the scan's own voxels (X, Y, Z), linearly; `outside` elsewhere."""

    def sampler(part: np.ndarray, matrix: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        return geo.resample_affine(part, matrix, shape, outside=outside)

    return geo.resample_to_stack(array.astype(np.float32, copy=False), prepared.affine, prepared.original, sampler)

"""From a scan to what the network sees, and back: normalised intensities on a regular grid close to R, A, S.

Order: limits of the intensities over the whole scan, crop to the body, normalise, smooth against aliasing, resample.
The way back needs only the network grid's affine and the scan's own geometry (`Grid`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from . import geometry as geo
from .volume import Geometry, Volume

_KINDS = ("window", "percentiles")
_AIR = -500.0  # HU: below is air or lung, above is body or table
_MARGIN = 5.0  # mm kept around the body
_STATISTICS_VOXELS = 2_000_000  # percentiles of this many voxels are as good as of all


@dataclass(frozen=True)
class Normalisation:
    """How intensities become [0, 1].

    kind "window": `low` and `high` in HU (CT). kind "percentiles": per channel; `low` percent of all voxels, `high`
    percent of those above the mean (so that the amount of air in the field of view does not matter); MRI.
    """

    kind: Literal["window", "percentiles"] = "window"
    low: float = -175.0
    high: float = 250.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"normalisation kind is {self.kind!r}, must be one of {_KINDS}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"normalisation limits are {self.low} and {self.high}, the first must be the smaller")
        if self.kind == "percentiles" and not (self.low >= 0.0 and self.high <= 100.0):
            raise ValueError(f"normalisation percentiles are {self.low} and {self.high}, must lie in 0 to 100")

    @classmethod
    def percentiles(cls, low: float = 0.5, high: float = 99.5) -> Normalisation:
        """The usual choice for MRI."""
        return cls("percentiles", low, high)

    def limits(self, array: np.ndarray) -> np.ndarray:
        """(C, 2): the intensities that become 0 and 1, of a scan (C, ...)."""
        if self.kind == "window":
            return np.tile([self.low, self.high], (len(array), 1))
        stride = max(1, math.ceil((array[0].size / _STATISTICS_VOXELS) ** (1 / max(array.ndim - 1, 1))))
        thinned = array[(slice(None), *[slice(None, None, stride if n > stride else None) for n in array.shape[1:]])]
        found = []
        for channel in thinned:
            bright = channel[channel > channel.mean(dtype=np.float64)]
            low = np.percentile(channel, self.low)
            high = np.percentile(bright, self.high) if bright.size else low
            found.append((low, high))
        return np.array(found, dtype=np.float64)

    def apply(self, array: np.ndarray, *, limits: np.ndarray | None = None) -> np.ndarray:
        """(C, ...) -> float32 in [0, 1]; `limits` when they were found on more than `array`. A constant becomes 0."""
        limits = self.limits(array) if limits is None else limits
        result = array.astype(np.float32)  # a copy: the rest works in place
        for channel, (low, high) in zip(result, limits):
            channel -= np.float32(low)
            channel *= np.float32(1.0 / (high - low)) if high > low else np.float32(0.0)
            np.clip(channel, 0.0, 1.0, out=channel)
        return result

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for model.json and the like."""
        return {"kind": self.kind, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Normalisation:
        """The reverse of `to_json`; ValueError names what is wrong."""
        if not isinstance(data, Mapping) or set(data) != {"kind", "low", "high"}:
            raise ValueError(f"normalisation needs exactly 'kind', 'low' and 'high', got {data!r}")
        return cls(data["kind"], _number(data["low"], "normalisation low"), _number(data["high"], "normalisation high"))


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is {value!r}, must be a number")
    return float(value)


def suggest_normalisation(volume: Volume) -> Normalisation:
    """A window for CT in HU, percentiles for the rest.

    Rule, without paddings (values of -1100 and below): at least one voxel in a thousand lies below -90 (fat, lung or
    air; MRI stored with an offset or as z-scores does not get there), the median of the rest lies in -1100 to 400, and
    the scan is not one of signed phases (which reach evenly from -4096 to 4095).
    """
    if volume.channels != 1:
        return Normalisation.percentiles()
    array = volume.array[0]
    stride = max(1, math.ceil((array.size / _STATISTICS_VOXELS) ** (1 / 3)))
    values = array[tuple(slice(None, None, stride if n > stride else None) for n in array.shape)]
    phases = np.percentile(values, 5) < -3050 and np.percentile(values, 95) > 3050
    values = values[values > -1100.0]
    if phases or not values.size:
        return Normalisation.percentiles()
    dark, middle = np.percentile(values, [0.1, 50])
    return Normalisation() if dark < -90.0 and middle < 400.0 else Normalisation.percentiles()


@dataclass(frozen=True)
class PreparationPlan:
    """What a model asks of its scans: `spacing` in mm along the R, A and S axes, and the intensities."""

    spacing: tuple[float, float, float] = (1.5, 1.5, 1.5)
    normalisation: Normalisation = Normalisation()

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or not all(math.isfinite(step) and step > 0 for step in self.spacing):
            raise ValueError(f"spacing is {self.spacing}, must be three positive numbers (mm along R, A, S)")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"spacing": list(self.spacing), "normalisation": self.normalisation.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PreparationPlan:
        """The reverse of `to_json`; ValueError names what is wrong."""
        if not isinstance(data, Mapping) or set(data) != {"spacing", "normalisation"}:
            raise ValueError(f"a preparation plan needs exactly 'spacing' and 'normalisation', got {data!r}")
        spacing = data["spacing"]
        if not isinstance(spacing, Sequence) or isinstance(spacing, str) or len(spacing) != 3:
            raise ValueError(f"spacing is {spacing!r}, must be three positive numbers (mm along R, A, S)")
        r, a, s = (_number(step, "spacing") for step in spacing)
        return cls((r, a, s), Normalisation.from_json(data["normalisation"]))


@dataclass(frozen=True)
class Grid:
    """Enough to bring results home: `affine` (4, 4) of the network grid -> RAS mm, and the scan's own geometry."""

    affine: np.ndarray
    native: Geometry


@dataclass(frozen=True)
class Prepared(Grid):
    """A scan as the network sees it: `array` float32 (C, H, W, D) in [0, 1], axes close to R, A, S."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        h, w, d = self.array.shape[1:]
        return h, w, d


def prepare(volume: Volume, plan: PreparationPlan, *, crop: bool = True) -> Prepared:
    """Scan -> normalised, resampled to the plan's regular grid; cropped to the body (and a margin) if `crop`.

    The grid keeps the scan's own directions, permuted and flipped to the nearest of R, A, S and made orthogonal; an
    irregular stack of slices is interpolated between its slices' true positions.
    """
    native = volume.geometry
    limits = plan.normalisation.limits(volume.array)
    box = body_box(volume, hounsfield=plan.normalisation.kind == "window") if crop else [(0, n) for n in native.shape]
    affine, shape = geo.regular_grid(native, plan.spacing, box=box)

    # What the grid and the smoothing can reach, and no more, is worked on. An irregular stack keeps all its slices.
    axes = geo.ras_axes(native.affine)
    own = native.affine[:3, :3] / np.linalg.norm(native.affine[:3, :3], axis=0)
    closest = np.abs(axes.T @ own).argmax(axis=0)  # the grid's axis next to each stored one
    ratios = np.asarray(plan.spacing)[closest] / native.spacing
    reach = np.ceil(2.0 * np.maximum(ratios, 1.0)).astype(int) + 1
    span = [(max(low - r, 0), min(high + r, n)) for (low, high), r, n in zip(box, reach, native.shape)]
    if native.slice_origins is not None or not _is_orthogonal(native.affine):
        span = [(0, n) for n in native.shape]
    source = Geometry(
        (span[0][1] - span[0][0], span[1][1] - span[1][0], span[2][1] - span[2][0]),
        geo.translated(native.affine, [low for low, _ in span]),
        native.slice_origins,
    )
    channels = []
    for channel, limit in zip(volume.array, limits):
        part = channel[tuple(slice(*s) for s in span)]
        part = geo.smooth(plan.normalisation.apply(part[None], limits=limit[None])[0], ratios)
        channels.append(geo.from_stack(part, source, affine, shape, geo.sample))
    return Prepared(affine=affine, native=native, array=np.stack(channels))


def _is_orthogonal(affine: np.ndarray) -> bool:
    own = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(own.T @ own - np.eye(3)).max() < 1e-3)


def body_box(volume: Volume, *, hounsfield: bool) -> list[tuple[int, int]]:
    """Per stored axis, first and end voxel of the body: on CT the large pieces above -500 HU (two legs, but no table);
    else what is brighter than a tenth of the scan's range. The whole scan when next to nothing is found. Looked for at
    about 4 mm."""
    shape, spacing = volume.shape, np.array(volume.spacing)
    stride = np.minimum(np.maximum(1, np.round(4.0 / spacing)), shape).astype(int)
    places = [_both_ends(n, int(step)) for n, step in zip(shape, stride)]
    small = volume.array[np.ix_(np.arange(volume.channels), *places)]
    if hounsfield:
        pieces, _ = ndimage.label(small[0] > _AIR)
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0  # the air
        mask = (sizes > 0.1 * sizes.max())[pieces]
    else:
        mask = np.zeros(small.shape[1:], bool)
        for channel in small:
            dark, bright = np.percentile(channel, [1, 99])
            mask |= channel > dark + 0.1 * (bright - dark)
    if mask.sum() < 1e-3 * mask.size:
        return [(0, n) for n in shape]
    found = ndimage.find_objects(mask.astype(np.uint8))[0]
    margin = stride + np.ceil(_MARGIN / spacing).astype(int)
    return [
        (max(0, int(there[part.start] - m)), min(n, int(there[part.stop - 1] + 1 + m)))
        for part, there, m, n in zip(found, places, margin, shape)
    ]


def _both_ends(count: int, step: int) -> np.ndarray:
    """Every step-th of `count` voxels, counted from both ends to the middle: a flipped scan shows the same ones."""
    half = np.arange(0, (count + 1) // 2, step)
    return np.unique([half, count - 1 - half])


def prepare_labels(labels: Volume, prepared: Prepared, *, values: Sequence[int] | None = None) -> np.ndarray:
    """A label map on the network grid: uint8, or uint16 if needed, (H, W, D).

    values: those to keep, the others become background; None keeps all. The label map may have its own grid.
    """
    array, native = labels.array[0], labels.geometry
    if native.slice_origins is None and native.matches(prepared.native):
        native = prepared.native  # a file cannot say where the slices truly lie; the scan it was drawn on can
    if values is not None:
        array = np.where(np.isin(array, list(values)), array, 0)
    highest = int(array.max(initial=0))
    if highest > 65535:
        raise ValueError(f"label value {highest} is above 65535")
    array = array.astype(np.uint8 if highest < 256 else np.uint16, copy=False)
    return geo.from_stack(array, native, prepared.affine, prepared.shape, geo.resample_labels)


def labels_to_native(labels: np.ndarray, prepared: Grid) -> np.ndarray:
    """Labels (H, W, D) on the network grid -> the scan's own voxels (X, Y, Z), same type; background outside."""
    return geo.to_stack(labels, prepared.affine, prepared.native, geo.resample_labels)


def scalar_to_native(array: np.ndarray, prepared: Grid, outside: float = 0.0) -> np.ndarray:
    """A map (H, W, D) of numbers, such as entropy -> the scan's own voxels (X, Y, Z), linearly; `outside` elsewhere."""

    def sampler(part: np.ndarray, matrix: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        return geo.sample(part, matrix, shape, outside=outside)

    return geo.to_stack(array.astype(np.float32, copy=False), prepared.affine, prepared.native, sampler)

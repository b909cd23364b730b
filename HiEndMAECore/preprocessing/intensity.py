"""From a scan to what the network sees, and back: normalised intensities on a regular grid close to R, A, S.

Order: limits of the intensities over the whole scan, crop to the body, normalise, smooth against aliasing, resample.
The way back needs only the network grid's affine and the scan's own geometry (`Grid`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from HiEndMAECore.io.volume import Volume

_KINDS = ("window", "percentiles")
_STATISTICS_VOXELS = 2_000_000  # percentiles of this many voxels are as good as of all


@dataclass(frozen=True)
class IntensityNormalization:
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
    def percentiles(cls, low: float = 0.5, high: float = 99.5) -> IntensityNormalization:
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
    def from_json(cls, data: Mapping[str, Any]) -> IntensityNormalization:
        """The reverse of `to_json`; ValueError names what is wrong."""
        if not isinstance(data, Mapping) or set(data) != {"kind", "low", "high"}:
            raise ValueError(f"normalisation needs exactly 'kind', 'low' and 'high', got {data!r}")
        return cls(data["kind"], _number(data["low"], "normalisation low"), _number(data["high"], "normalisation high"))


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is {value!r}, must be a number")
    return float(value)


def suggest_normalization(volume: Volume) -> IntensityNormalization:
    """A window for CT in HU, percentiles for the rest.

    Rule, without paddings (values of -1100 and below): at least one voxel in a thousand lies below -90 (fat, lung or
    air; MRI stored with an offset or as z-scores does not get there), the median of the rest lies in -1100 to 400, and
    the scan is not one of signed phases (which reach evenly from -4096 to 4095).
    """
    if volume.channels != 1:
        return IntensityNormalization.percentiles()
    array = volume.array[0]
    stride = max(1, math.ceil((array.size / _STATISTICS_VOXELS) ** (1 / 3)))
    values = array[tuple(slice(None, None, stride if n > stride else None) for n in array.shape)]
    phases = np.percentile(values, 5) < -3050 and np.percentile(values, 95) > 3050
    values = values[values > -1100.0]
    if phases or not values.size:
        return IntensityNormalization.percentiles()
    dark, middle = np.percentile(values, [0.1, 50])
    return IntensityNormalization() if dark < -90.0 and middle < 400.0 else IntensityNormalization.percentiles()

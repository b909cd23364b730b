"""Intensity normalization: from HU or MRI intensities to [0, 1], and the choice between a window and percentiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from HiEndMAECore.io.volume import Volume

from .defaults import CT_WINDOW_HU, MRI_PERCENTILES

_KINDS = ("window", "percentiles")
_SAMPLED_VOXELS = 2_000_000  # percentiles of this many voxels are as good as those of all
_PADDING_HU = -1100.0  # this and below is padding outside of a scanner's field of view
_SOFT_TISSUE_HU = -90.0  # fat, lung and air are darker
_MEDIAN_HU = 400.0  # the median of a CT lies below
_PHASE_LIMIT = 3050.0  # images of signed phases reach evenly from -4096 to 4095


@dataclass(frozen=True)
class IntensityNormalization:
    """How intensities become [0, 1].

    Attributes:
        kind: "window" for CT: `low` and `high` in HU. "percentiles" for MRI, channel by channel: `low` percent of all
            voxels, `high` percent of those above the mean, so that the amount of air in the field of view does not matter.
        low: The intensity, or percentile, that becomes 0.
        high: The intensity, or percentile, that becomes 1.
    """

    kind: Literal["window", "percentiles"] = "window"
    low: float = CT_WINDOW_HU[0]
    high: float = CT_WINDOW_HU[1]

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"normalisation kind is {self.kind!r}, must be one of {_KINDS}")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"normalisation limits are {self.low} and {self.high}, the first must be the smaller")
        if self.kind == "percentiles" and not (self.low >= 0.0 and self.high <= 100.0):
            raise ValueError(f"normalisation percentiles are {self.low} and {self.high}, must lie in 0 to 100")

    @classmethod
    def percentiles(cls, low: float = MRI_PERCENTILES[0], high: float = MRI_PERCENTILES[1]) -> IntensityNormalization:
        """Return the normalization by percentiles, as for MRI."""
        return cls("percentiles", low, high)

    def limits(self, array: np.ndarray) -> np.ndarray:
        """Return the intensities that become 0 and 1.

        Args:
            array: A scan (C, ...).

        Returns:
            (C, 2): the lower and the upper limit of each channel.
        """
        if self.kind == "window":
            return np.tile([self.low, self.high], (len(array), 1))
        stride = max(1, math.ceil((array[0].size / _SAMPLED_VOXELS) ** (1 / max(array.ndim - 1, 1))))
        sampled = array[(slice(None), *[slice(None, None, stride if n > stride else None) for n in array.shape[1:]])]
        limits = []
        for channel in sampled.astype(np.float32, copy=False):
            bright = channel[channel > channel.mean(dtype=np.float64)]
            low = np.percentile(channel, self.low)
            high = np.percentile(bright, self.high) if bright.size else low
            limits.append((low, high))
        return np.array(limits, dtype=np.float64)

    def apply(self, array: np.ndarray, *, limits: np.ndarray | None = None) -> np.ndarray:
        """Normalize intensities.

        Args:
            array: A scan or a part of it (C, ...).
            limits: (C, 2) of `limits`, when they were found on more than `array`.

        Returns:
            float32 (C, ...) in [0, 1]; a constant channel becomes 0.
        """
        limits = self.limits(array) if limits is None else limits
        result = array.astype(np.float32)  # a copy, which the following lines change in place
        for channel, (low, high) in zip(result, limits):
            channel -= np.float32(low)
            channel *= np.float32(1.0 / (high - low)) if high > low else np.float32(0.0)
            np.clip(channel, 0.0, 1.0, out=channel)
        return result

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, as model.json and the manifest of a store hold it."""
        return {"kind": self.kind, "low": self.low, "high": self.high}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> IntensityNormalization:
        """Return the normalization that `to_json` described.

        Raises:
            ValueError: A key is absent or unknown, or a value is impossible; the message names it.
        """
        if not isinstance(data, Mapping) or set(data) != {"kind", "low", "high"}:
            raise ValueError(f"normalisation needs exactly 'kind', 'low' and 'high', got {data!r}")
        return cls(
            data["kind"],
            parse_number(data["low"], "normalisation low"),
            parse_number(data["high"], "normalisation high"),
        )


def parse_number(value: Any, name: str) -> float:
    """Return a JSON number as float.

    Raises:
        ValueError: The value is not a number; the message begins with `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, must be a number")
    return float(value)


def suggest_normalization(volume: Volume) -> IntensityNormalization:
    """Choose a window for CT in HU and percentiles for everything else.

    A scan of one channel counts as CT when, without padding, at least one voxel in a thousand lies below -90 (fat, lung or
    air, which MRI stored with an offset or as z-scores does not reach), the median lies below 400, and it is not an image
    of signed phases.

    Args:
        volume: The scan.

    Returns:
        The default window, or the default percentiles.
    """
    if volume.channels != 1:
        return IntensityNormalization.percentiles()
    array = volume.array[0]
    stride = max(1, math.ceil((array.size / _SAMPLED_VOXELS) ** (1 / 3)))
    values = array[tuple(slice(None, None, stride if n > stride else None) for n in array.shape)]
    phases = np.percentile(values, 5) < -_PHASE_LIMIT and np.percentile(values, 95) > _PHASE_LIMIT
    values = values[values > _PADDING_HU]
    if phases or not values.size:
        return IntensityNormalization.percentiles()
    dark, median = np.percentile(values, [0.1, 50])
    is_ct = dark < _SOFT_TISSUE_HU and median < _MEDIAN_HU
    return IntensityNormalization() if is_ct else IntensityNormalization.percentiles()

"""Features for registration: MIND-SSC, the tissue class of CT, and the mask of the body.

MIND-SSC (Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using self-similarities",
MICCAI 2013) describes a voxel by how much the patches around it resemble each other, and is independent of contrast. The six
patches lie at `dilation` voxels along the axes. Each of the 12 pairs that are not opposite gives one channel:

    D = mean squared difference of the two patches (3 x 3 x 3 voxels)
    channel = exp(-(D - smallest D of the 12) / V),  V = mean D of the 12, limited to 0.001 to 1000 times its mean
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from HiEndMAECore.errors import InputError
from HiEndMAECore.preprocessing.defaults import CT_WINDOW_HU
from HiEndMAECore.preprocessing.intensity import IntensityNormalization

from .grids import Grid, resample_parallel

Modality = Literal["ct", "mri"]
MIND_CHANNELS = 12
_TISSUE_HU = (-150.0, -125.0, -65.0, -20.0, 185.0, 235.0)  # where the transitions between tissues begin and end
_TISSUE_CLASSES = (0.0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1.0)
_BODY_SHARE = 0.1  # share of the intensity range above which a voxel is body
_MIN_VOXELS = 3  # of the scan along each axis
_MIN_THICKNESS = 3.5  # in voxels of the features; a single thick slice may have become several voxels
_NEIGHBORS = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
_PAIRS = [(a, b) for a, b in combinations(_NEIGHBORS, 2) if any(x + y for x, y in zip(a, b))]


@dataclass(frozen=True, eq=False)
class RegistrationImage:
    """A scan on a regular grid.

    Attributes:
        image: float32 (X, Y, Z) in [0, 1], axes close to R, A and S.
        affine: (4, 4), from voxel index to RAS mm.
    """

    image: Tensor
    affine: np.ndarray

    @classmethod
    def of_normalized(
        cls, image: Tensor, affine: np.ndarray, normalization: IntensityNormalization
    ) -> RegistrationImage:
        """Return a normalized channel (X, Y, Z); CT of another window gets the default one, which `tissue_class` needs."""
        low, high = CT_WINDOW_HU
        if normalization.kind == "window" and (normalization.low, normalization.high) != (low, high):
            hu = image.float() * (normalization.high - normalization.low) + normalization.low
            image = ((hu - low) / (high - low)).clamp(0, 1)
        return cls(image, affine)

    @property
    def grid(self) -> Grid:
        """Return the grid of the image."""
        x, y, z = self.image.shape
        return Grid((x, y, z), np.asarray(self.affine, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Features:
    """The features of one scan.

    Attributes:
        channels: (C, X, Y, Z), float32 in [0, 1] or uint8 (`to_8_bits`): 12 of MIND-SSC, the tissue class (CT alone), and
            the share of the body.
        grid: Their grid.
    """

    channels: Tensor
    grid: Grid

    def to_8_bits(self) -> Features:
        """Return the features in 8 bits."""
        return Features((self.channels * 255).round().to(torch.uint8), self.grid)

    def to_float(self) -> Features:
        """Return the features in 32 bits."""
        if self.channels.dtype != torch.uint8:
            return self
        return Features(self.channels.float() / 255, self.grid)

    def pooled(self, factor: int) -> Features:
        """Return the averages of blocks of `factor` voxels along each axis."""
        return Features(average_blocks(self.channels, factor), self.grid.pooled(factor))

    @property
    def body(self) -> Tensor:
        """Return the share of the body in each voxel (X, Y, Z)."""
        return self.channels[-1]


def extract_features(scan: RegistrationImage, *, modality: Modality, spacing: float, dilation: int = 2) -> Features:
    """Return the features of a scan.

    Args:
        scan: The scan.
        modality: "ct" adds the tissue class as a channel, "mri" does not.
        spacing: Spacing of the features in mm.
        dilation: Distance of the patches of MIND-SSC in voxels of the features.

    Raises:
        InputError: `scan_too_thin`; the scan is a single slice, or nearly so. `scan_shows_nothing`; all its voxels are equal.
    """
    thinnest, needed = float(scan.grid.extent.min()), _MIN_THICKNESS * spacing
    if thinnest < needed or min(scan.grid.shape) < _MIN_VOXELS:
        message = (
            f"The scan has {min(scan.grid.shape)} voxels along its thinnest axis ({thinnest:.0f} mm); "
            f"registration needs {_MIN_VOXELS} voxels and {needed:.0f} mm or more."
        )
        raise InputError("scan_too_thin", message, "Use a volume instead of single slices.")
    if float(scan.image.min()) == float(scan.image.max()):
        message = "All voxels of the scan have the same intensity: there is nothing to register."
        raise InputError("scan_shows_nothing", message, "Check the scan and the window of intensities.")
    grid = scan.grid.with_spacing(spacing)
    image = resample_parallel(scan.image.float(), scan.grid, grid)
    channels = [mind_ssc(image, dilation=dilation)]
    if modality == "ct":
        channels.append(resample_parallel(tissue_class(scan.image.float()), scan.grid, grid)[None])
    channels.append(body_mask(image).float()[None])
    return Features(torch.cat(channels), grid)


def tissue_class(image: Tensor) -> Tensor:
    """Return the tissue of CT: 0 air, 1/3 fat, 2/3 soft tissue, 1 bone, with linear transitions.

    Soft tissue is one class from 0 to 200 HU, whatever its contrast medium. Registration from it is as good as from the
    intensities (Testing/Benchmarks/results.md), and a model need not keep any.

    Args:
        image: Intensities in [0, 1] of the default CT window.
    """
    limits = image.new_tensor([(hu - CT_WINDOW_HU[0]) / (CT_WINDOW_HU[1] - CT_WINDOW_HU[0]) for hu in _TISSUE_HU])
    classes = image.new_tensor(_TISSUE_CLASSES)
    image = image.clamp(0, 1)
    above = torch.bucketize(image, limits).clamp(1, len(limits) - 1)
    share = (image - limits[above - 1]) / (limits[above] - limits[above - 1])
    return classes[above - 1].lerp(classes[above], share.clamp(0, 1))


def mind_ssc(image: Tensor, *, dilation: int = 2) -> Tensor:
    """Return the 12 channels of MIND-SSC (12, X, Y, Z), in [0, 1], of an image (X, Y, Z)."""
    margin = dilation + 1
    padded = functional.pad(image[None, None], [margin] * 6, mode="replicate")[0, 0]
    sizes = image.shape
    channels = image.new_empty((MIND_CHANNELS, *sizes))
    for channel, (a, b) in zip(channels, _PAIRS):
        first, second = (_shifted(padded, [dilation * step for step in offset], sizes) for offset in (a, b))
        channel.copy_(functional.avg_pool3d((first - second).square()[None, None], 3, stride=1)[0, 0])
    variance = channels.mean(0)
    mean = float(variance.mean())
    variance.clamp_(0.001 * mean + 1e-12, 1000 * mean + 1e-12)
    channels -= channels.amin(0)
    return channels.div_(variance).neg_().exp_()


def body_mask(image: Tensor) -> Tensor:
    """Return the body: the largest component brighter than a tenth of the intensity range, its axial holes filled.

    Args:
        image: (X, Y, Z), the last axis close to S.

    Returns:
        Boolean (X, Y, Z); the whole image where there is no body to be seen.
    """
    array = image.detach().cpu().numpy()
    dark, bright = np.percentile(array, [1, 99])
    mask = array > dark + _BODY_SHARE * (bright - dark)
    components, count = ndimage.label(mask)
    if count == 0:
        return torch.ones_like(image, dtype=torch.bool)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    mask = components == sizes.argmax()
    for plane in range(mask.shape[2]):
        mask[:, :, plane] = ndimage.binary_fill_holes(mask[:, :, plane])
    return torch.from_numpy(mask).to(image.device)


def average_blocks(volume: Tensor, factor: int) -> Tensor:
    """Return the averages (C, x, y, z) of blocks of a volume (C, X, Y, Z); incomplete blocks average what they have."""
    if factor == 1:
        return volume
    return functional.avg_pool3d(volume[None], factor, ceil_mode=True, count_include_pad=False)[0]


def _shifted(padded: Tensor, offset: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return the part of a padded image around its middle, with a margin of one voxel, shifted by `offset`."""
    margins = [(whole - size) // 2 for whole, size in zip(padded.shape, sizes)]
    parts = (slice(m - 1 + o, m + 1 + o + n) for m, o, n in zip(margins, offset, sizes))
    return padded[tuple(parts)]

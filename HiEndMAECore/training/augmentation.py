"""Random changes to crops: first the parameters are drawn (plain numbers), then they are applied to the whole batch.

Every sample of a run has its own generator, keyed by (seed, index of the sample): any number of workers and processes
draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def sample_generator(seed: int, index: int) -> np.random.Generator:
    """The generator of sample `index` of a run with `seed`."""
    return np.random.default_rng((seed, index))


# -- pretraining: what the paper does (section 4.1) ------------------------------------------------------------------


@dataclass(frozen=True)
class Flip:
    """One crop's changes in pretraining: mirrored axes, quarter turns in the plane of the first two axes, intensity."""

    axes: tuple[int, ...]
    turns: int
    scale: float
    shift: float


def draw_flip(rng: np.random.Generator, *, square: bool) -> Flip:
    """Flips p .5 an axis, quarter turns p .3 (only for crops that are `square` in the turned plane), intensity p .1."""
    axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
    turns = int(rng.integers(1, 4)) if rng.random() < 0.3 and square else 0
    scale = 1 + rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 1.0
    shift = rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 0.0
    return Flip(axes, turns, float(scale), float(shift))


def flip_only(flip: Flip) -> Flip:
    """The same change of place without the change of intensity."""
    return replace(flip, scale=1.0, shift=0.0)


def apply_flips(volume: Tensor, flips: Sequence[Flip]) -> Tensor:
    """volume (B, C, H, W, D) and one change a crop -> the same size and type, on the same device."""
    turned = [
        crop.flip([axis + 1 for axis in flip.axes]).rot90(flip.turns, (1, 2)) for crop, flip in zip(volume, flips)
    ]
    out = torch.stack(turned)
    if any((flip.scale, flip.shift) != (1.0, 0.0) for flip in flips):
        scale, shift = (
            torch.tensor(values, dtype=out.dtype).to(out.device, non_blocking=True).view(-1, 1, 1, 1, 1)
            for values in ([flip.scale for flip in flips], [flip.shift for flip in flips])
        )
        out = out * scale + shift
    return out


# -- fine-tuning: another patient's shape, position, contrast and noise out of one scan --------------------------------


@dataclass(frozen=True)
class Deformation:
    """One crop's changes in fine-tuning.

    matrix: (3, 3) from crop offsets to volume offsets, in voxels (rotation, scaling, shear, mirroring).
    bend: (3, n, n, n) displacements of a coarse lattice over the crop, in voxels, interpolated smoothly.
    gain, shift, gamma, noise, blur: intensities in [0, 1]: `(x ** gamma) * gain + shift`, noise of that spread, Gaussian
        blur of that many voxels.
    seed: of the noise.
    """

    matrix: np.ndarray
    bend: np.ndarray
    gain: float
    shift: float
    gamma: float
    noise: float
    blur: float
    seed: int


UNCHANGED = Deformation(np.eye(3), np.zeros((3, 4, 4, 4)), 1.0, 0.0, 1.0, 0.0, 0.0, 0)


def draw_deformation(rng: np.random.Generator, size: Sequence[int]) -> Deformation:
    """Rotations of up to 20 degrees, scalings of 0.75 to 1.33 (and 10 % by axis), a bend of up to a tenth of the crop.

    Every second crop stays as it is: a budget of minutes has to learn the scan itself first.
    """
    if rng.random() < 0.5:
        return UNCHANGED
    angles = np.deg2rad(rng.uniform(-20, 20, 3)) * (rng.random() < 0.7)
    stretch = np.exp(rng.uniform(-0.29, 0.29)) * np.exp(rng.uniform(-0.1, 0.1, 3)) if rng.random() < 0.7 else np.ones(3)
    bend = rng.normal(0, 1, (3, 4, 4, 4)) * rng.uniform(0, 0.06) * float(np.mean(size))
    return Deformation(
        matrix=_rotation(angles) @ np.diag(stretch),
        bend=bend * (rng.random() < 0.5),
        gain=float(rng.uniform(0.8, 1.25)) if rng.random() < 0.5 else 1.0,
        shift=float(rng.uniform(-0.1, 0.1)) if rng.random() < 0.5 else 0.0,
        gamma=float(np.exp(rng.uniform(-0.35, 0.35))) if rng.random() < 0.5 else 1.0,
        noise=float(rng.uniform(0, 0.06)) if rng.random() < 0.4 else 0.0,
        blur=float(rng.uniform(0.4, 1.0)) if rng.random() < 0.2 else 0.0,
        seed=int(rng.integers(2**31)),
    )


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def cut(
    image: Tensor, labels: Tensor, centre: np.ndarray, size: Sequence[int], change: Deformation
) -> tuple[Tensor, Tensor]:
    """A deformed crop around `centre` (voxels): image (C, H, W, D) and labels (H, W, D) of a whole scan ->
    (C, *size) float32 and (*size) of the labels' type. Outside the scan the image is 0 and the label background."""
    device = image.device
    axes = [torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in size]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    places = offsets @ torch.as_tensor(change.matrix.T, dtype=torch.float32, device=device)
    places = places + torch.as_tensor(centre, dtype=torch.float32, device=device)
    if change.bend.any():
        lattice = torch.as_tensor(change.bend, dtype=torch.float32, device=device)[None]
        bend = F.interpolate(lattice, size=tuple(size), mode="trilinear", align_corners=True)[0]
        places = places + bend.permute(1, 2, 3, 0)
    whole = torch.tensor(image.shape[1:], dtype=torch.float32, device=device)
    grid = (places * 2 + 1) / whole - 1  # grid_sample's coordinates, align_corners False
    grid = grid.flip(-1)[None]  # it wants them last axis first
    crop = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    target = F.grid_sample(labels[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return _recolour(crop, change), target[0, 0].to(labels.dtype)


def _recolour(crop: Tensor, change: Deformation) -> Tensor:
    if change.blur:
        from monai.networks.layers import GaussianFilter

        crop = GaussianFilter(3, change.blur, truncated=2.0).to(crop.device)(crop[None])[0]
    if change.gamma != 1:
        crop = crop.clamp(min=0) ** change.gamma
    crop = crop * change.gain + change.shift
    if change.noise:
        # Drawn on the processor, so that every device gets the same.
        noise = torch.randn(crop.shape, generator=torch.Generator().manual_seed(change.seed))
        crop = crop + change.noise * noise.to(crop.device)
    return crop

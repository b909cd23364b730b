"""Random changes to crops: first the parameters are drawn (plain numbers), then they are applied to the whole batch.

Every sample of a run has its own generator, keyed by (seed, index of the sample): any number of workers and processes
draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from monai.networks.layers.convutils import gaussian_1d
from torch import Tensor
from torch.nn import functional as F


def sample_generator(seed: int, index: int) -> np.random.Generator:
    """The generator of sample `index` of a run with `seed`."""
    return np.random.default_rng((seed, index))


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


def draw_unrotated_flip(rng: np.random.Generator) -> Flip:
    """Mirrored right to left alone, p .5, as patients lie; every crop with another intensity."""
    axes = (0,) if rng.random() < 0.5 else ()
    return Flip(axes, 0, float(rng.uniform(0.85, 1.15)), float(rng.uniform(-0.05, 0.05)))


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


@dataclass(frozen=True)
class Augmentation:
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


IDENTITY = Augmentation(np.eye(3), np.zeros((3, 4, 4, 4)), 1.0, 0.0, 1.0, 0.0, 0.0, 0)


def draw_augmentation(rng: np.random.Generator, size: Sequence[int]) -> Augmentation:
    """Rotations of up to 20 degrees, scalings of 0.75 to 1.33 (and 10 % by axis), a bend of up to a tenth of the crop.

    Every second crop stays as it is: a budget of minutes has to learn the scan itself first.
    """
    if rng.random() < 0.5:
        return IDENTITY
    angles = np.deg2rad(rng.uniform(-20, 20, 3)) * (rng.random() < 0.7)
    stretch = np.exp(rng.uniform(-0.29, 0.29)) * np.exp(rng.uniform(-0.1, 0.1, 3)) if rng.random() < 0.7 else np.ones(3)
    bend = rng.normal(0, 1, (3, 4, 4, 4)) * rng.uniform(0, 0.06) * float(np.mean(size))
    return Augmentation(
        matrix=rotation(angles) @ np.diag(stretch),
        bend=bend * (rng.random() < 0.5),
        gain=float(rng.uniform(0.8, 1.25)) if rng.random() < 0.5 else 1.0,
        shift=float(rng.uniform(-0.1, 0.1)) if rng.random() < 0.5 else 0.0,
        gamma=float(np.exp(rng.uniform(-0.35, 0.35))) if rng.random() < 0.5 else 1.0,
        noise=float(rng.uniform(0, 0.06)) if rng.random() < 0.4 else 0.0,
        blur=float(rng.uniform(0.4, 1.0)) if rng.random() < 0.2 else 0.0,
        seed=int(rng.integers(2**31)),
    )


def rotation(angles: np.ndarray) -> np.ndarray:
    """(3, 3) matrix that turns by `angles` (radians) about each axis in turn."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def draw_paper_augmentation(rng: np.random.Generator, *, square: bool) -> Augmentation:
    """What the paper's fine-tuning does: flips p .2 an axis, quarter turns p .2 in the plane of the first two axes (only
    for crops that are `square` there), intensities scaled and shifted by up to a tenth p .1 each."""
    matrix = np.diag([-1.0 if rng.random() < 0.2 else 1.0 for _ in range(3)])
    if rng.random() < 0.2 and square:
        matrix = matrix @ np.round(rotation(np.array([0, 0, np.pi / 2 * rng.integers(1, 4)])))
    scale = 1 + rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 1.0
    shift = rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 0.0
    return replace(IDENTITY, matrix=matrix, gain=float(scale), shift=float(shift))


def mirror_augmentation(change: Augmentation) -> Augmentation:
    """The same change of the crop mirrored along its first axis, the patient's right-left."""
    return replace(change, matrix=change.matrix @ np.diag([-1.0, 1.0, 1.0]))


def is_mirrored(change: Augmentation) -> bool:
    """Does the change turn a right hand into a left one?"""
    return bool(np.linalg.det(change.matrix) < 0)


def crop_augmented(
    image: Tensor, labels: Tensor, center: np.ndarray, size: Sequence[int], change: Augmentation
) -> tuple[Tensor, Tensor]:
    """One deformed crop, see `cut_batch`: (C, *size) and (*size)."""
    crops, targets = crop_batch_augmented(image, labels, [center], size, [change])
    return crops[0], targets[0]


def crop_batch_augmented(
    image: Tensor, labels: Tensor, centers: Sequence[np.ndarray], size: Sequence[int], changes: Sequence[Augmentation]
) -> tuple[Tensor, Tensor]:
    """Deformed crops around `centres` (voxels), all in one interpolation: image (C, H, W, D) and labels (H, W, D) of a
    whole scan -> (B, C, *size) float32 and (B, *size) of the labels' type. Outside the scan the image is 0 and the label
    background."""
    device = image.device
    grid = _places(np.stack(centers), size, changes, image.shape[1:]).to(device)
    # On a CPU torch interpolates one sample on one thread: crops go in as slabs, the scan itself is not copied.
    slabs = next((n for n in (4, 3, 2) if size[0] % n == 0), 1) if device.type == "cpu" else 1
    grid = grid.view(len(changes) * slabs, size[0] // slabs, size[1], size[2], 3)

    def sample(whole: Tensor, mode: str) -> Tensor:
        found = F.grid_sample(
            whole[None].expand(len(grid), -1, -1, -1, -1), grid, mode=mode, padding_mode="zeros", align_corners=False
        )
        found = found.view(len(changes), slabs, len(whole), -1, *size[1:]).transpose(1, 2)
        return found.reshape(len(changes), len(whole), *size)

    crops, targets = sample(image, "bilinear"), sample(labels[None].float(), "nearest")
    return _augment_intensities(crops, changes), targets[:, 0].to(labels.dtype)


def _places(centers: np.ndarray, size: Sequence[int], changes: Sequence[Augmentation], shape: Sequence[int]) -> Tensor:
    """(B, *size, 3): where in a scan of `shape` each voxel of the crops lies, in grid_sample's coordinates (-1 to 1 from
    edge to edge, align_corners False, the last axis first)."""
    whole = np.array(shape, float)
    matrices = np.stack([change.matrix for change in changes]) * 2 / whole[:, None]
    starts = (centers * 2 + 1) / whole - 1
    steps = torch.as_tensor(matrices[:, ::-1].copy(), dtype=torch.float32)  # (B, 3 of the scan, 3 of the crop)
    grid = torch.as_tensor(starts[:, ::-1].copy(), dtype=torch.float32)[:, None, None, None]
    for axis, n in enumerate(size):
        line = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        line = line.view([-1 if other == axis else 1 for other in range(3)])
        grid = grid + line[None, ..., None] * steps[:, None, None, None, :, axis]
    if any(change.bend.any() for change in changes):
        bends = np.stack([change.bend for change in changes]) * (2 / whole)[:, None, None, None]
        lattices = torch.as_tensor(bends[:, ::-1].copy(), dtype=torch.float32)
        grid = grid + F.interpolate(lattices, size=tuple(size), mode="trilinear", align_corners=True).movedim(1, -1)
    return grid


def _augment_intensities(crops: Tensor, changes: Sequence[Augmentation]) -> Tensor:
    """crops (B, C, H, W, D): each with its own blur, gamma, gain, shift and noise."""
    device = crops.device

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=crops.dtype).to(device).view(-1, 1, 1, 1, 1)

    blurred = [index for index, change in enumerate(changes) if change.blur]
    if blurred:
        crops[blurred] = _blur(crops[blurred], [changes[index].blur for index in blurred])
    if any(change.gamma != 1 for change in changes):
        crops = crops.clamp(min=0) ** column([change.gamma for change in changes])
    if any((change.gain, change.shift) != (1.0, 0.0) for change in changes):
        crops = crops * column([change.gain for change in changes]) + column([change.shift for change in changes])
    for index, change in enumerate(changes):
        if change.noise:
            generator = torch.Generator(device).manual_seed(change.seed)
            noise = torch.randn(crops.shape[1:], generator=generator, device=device)
            crops[index] += change.noise * noise
    return crops


def _blur(crops: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian blur of each crop (B, C, H, W, D) by its own sigma (voxels), cut off at two sigmas; air outside."""
    kernels = [gaussian_1d(torch.tensor(sigma), truncated=2.0) for sigma in sigmas]
    reach = max(len(kernel) // 2 for kernel in kernels)
    padded = torch.stack([F.pad(kernel, [reach - len(kernel) // 2] * 2) for kernel in kernels]).to(crops.device)
    for axis in (2, 3, 4):
        wide = F.pad(crops, [reach if other == axis else 0 for other in (4, 3, 2) for _ in range(2)])
        crops = sum(  # type: ignore[assignment]
            wide.narrow(axis, place, crops.shape[axis]) * padded[:, place].view(-1, 1, 1, 1, 1)
            for place in range(2 * reach + 1)
        )
    return crops

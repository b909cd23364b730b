"""Random augmentation of crops: the parameters are drawn first, as plain numbers, and then applied to a whole batch.

Every sample of a run has its own generator, keyed by (seed, sample index). The result therefore does not depend on the
number of workers and processes.
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
    """Return the random generator of sample `index` of a run with `seed`."""
    return np.random.default_rng((seed, index))


@dataclass(frozen=True)
class Flip:
    """Parameters of the pretraining augmentation of one crop.

    Attributes:
        axes: Mirrored spatial axes, from 0 to 2.
        quarter_turns: Rotations by 90 degrees in the plane of the first two axes.
        scale: Factor of the intensities.
        shift: Offset that is added to the scaled intensities.
    """

    axes: tuple[int, ...]
    quarter_turns: int
    scale: float
    shift: float


def draw_flip(rng: np.random.Generator, *, square: bool) -> Flip:
    """Draw the augmentation of masked-autoencoder pretraining (paper section 4.1).

    Each axis is mirrored with probability 0.5. Quarter turns have probability 0.3, scaling and shifting of the intensities
    by up to a tenth have probability 0.1 each.

    Args:
        rng: Generator of the sample.
        square: True when the first two edges of the crop are equal; other crops are not rotated.
    """
    axes = tuple(axis for axis in range(3) if rng.random() < 0.5)
    quarter_turns = int(rng.integers(1, 4)) if rng.random() < 0.3 and square else 0
    scale = 1 + rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 1.0
    shift = rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 0.0
    return Flip(axes, quarter_turns, float(scale), float(shift))


def draw_unrotated_flip(rng: np.random.Generator) -> Flip:
    """Draw an augmentation without rotation, for inpainting: the orientation of the patients is preserved.

    Only the right-left axis is mirrored, with probability 0.5. The intensities of every crop are scaled and shifted.
    """
    axes = (0,) if rng.random() < 0.5 else ()
    return Flip(axes, 0, float(rng.uniform(0.85, 1.15)), float(rng.uniform(-0.05, 0.05)))


def flip_only(flip: Flip) -> Flip:
    """Return the spatial part of `flip`, without its intensity augmentation."""
    return replace(flip, scale=1.0, shift=0.0)


def apply_flips(volume: Tensor, flips: Sequence[Flip]) -> Tensor:
    """Apply one augmentation to each crop of a batch.

    Args:
        volume: Crops (B, C, H, W, D).
        flips: B augmentations.

    Returns:
        A batch of the same shape, data type and device.
    """
    flipped = [
        crop.flip([axis + 1 for axis in flip.axes]).rot90(flip.quarter_turns, (1, 2))
        for crop, flip in zip(volume, flips)
    ]
    out = torch.stack(flipped)
    if any((flip.scale, flip.shift) != (1.0, 0.0) for flip in flips):
        scale, shift = (
            torch.tensor(values, dtype=out.dtype).to(out.device, non_blocking=True).view(-1, 1, 1, 1, 1)
            for values in ([flip.scale for flip in flips], [flip.shift for flip in flips])
        )
        out = out * scale + shift
    return out


@dataclass(frozen=True)
class Augmentation:
    """Parameters of the fine-tuning augmentation of one crop.

    Intensities lie in [0, 1] and become `(x ** gamma) * gain + shift`.

    Attributes:
        matrix: (3, 3) affine map from crop offsets to scan offsets in voxels: rotation, scaling and mirroring.
        displacement: (3, n, n, n) displacements in voxels at the nodes of a coarse lattice over the crop, from which the
            elastic deformation is interpolated.
        gain: Factor of the intensities.
        shift: Offset that is added to the scaled intensities.
        gamma: Exponent of the intensities.
        noise: Standard deviation of the Gaussian noise.
        blur: Standard deviation of the Gaussian blur in voxels; 0 is no blur.
        seed: Seed of the noise.
    """

    matrix: np.ndarray
    displacement: np.ndarray
    gain: float
    shift: float
    gamma: float
    noise: float
    blur: float
    seed: int


IDENTITY = Augmentation(np.eye(3), np.zeros((3, 4, 4, 4)), 1.0, 0.0, 1.0, 0.0, 0.0, 0)


def draw_augmentation(rng: np.random.Generator, size: Sequence[int]) -> Augmentation:
    """Draw the augmentation of the default recipe.

    Crops are rotated by up to 20 degrees, scaled by 0.75 to 1.33 (and by up to 10 % along each axis), and deformed
    elastically by up to about a tenth of the crop. Every second crop is not augmented: within a budget of minutes the
    network has to learn the labelled scan itself first.

    Args:
        rng: Generator of the sample.
        size: Edges of the crop in voxels.
    """
    if rng.random() < 0.5:
        return IDENTITY
    angles = np.deg2rad(rng.uniform(-20, 20, 3)) * (rng.random() < 0.7)
    stretch = np.exp(rng.uniform(-0.29, 0.29)) * np.exp(rng.uniform(-0.1, 0.1, 3)) if rng.random() < 0.7 else np.ones(3)
    displacement = rng.normal(0, 1, (3, 4, 4, 4)) * rng.uniform(0, 0.06) * float(np.mean(size))
    return Augmentation(
        matrix=rotation(angles) @ np.diag(stretch),
        displacement=displacement * (rng.random() < 0.5),
        gain=float(rng.uniform(0.8, 1.25)) if rng.random() < 0.5 else 1.0,
        shift=float(rng.uniform(-0.1, 0.1)) if rng.random() < 0.5 else 0.0,
        gamma=float(np.exp(rng.uniform(-0.35, 0.35))) if rng.random() < 0.5 else 1.0,
        noise=float(rng.uniform(0, 0.06)) if rng.random() < 0.4 else 0.0,
        blur=float(rng.uniform(0.4, 1.0)) if rng.random() < 0.2 else 0.0,
        seed=int(rng.integers(2**31)),
    )


def rotation(angles: np.ndarray) -> np.ndarray:
    """Return the (3, 3) matrix that rotates about the first, second and third axis by `angles` (radians)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        about_axis = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        about_axis[a, a] = about_axis[b, b] = np.cos(angle)
        about_axis[a, b], about_axis[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ about_axis
    return matrix


def draw_paper_augmentation(rng: np.random.Generator, *, square: bool) -> Augmentation:
    """Draw the augmentation of the paper's fine-tuning (section 4.1, as in the authors' code).

    Each axis is mirrored with probability 0.2. Quarter turns in the plane of the first two axes have probability 0.2,
    scaling and shifting of the intensities by up to a tenth have probability 0.1 each.

    Args:
        rng: Generator of the sample.
        square: True when the first two edges of the crop are equal; other crops are not rotated.
    """
    matrix = np.diag([-1.0 if rng.random() < 0.2 else 1.0 for _ in range(3)])
    if rng.random() < 0.2 and square:
        matrix = matrix @ np.round(rotation(np.array([0, 0, np.pi / 2 * rng.integers(1, 4)])))
    scale = 1 + rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 1.0
    shift = rng.uniform(-0.1, 0.1) if rng.random() < 0.1 else 0.0
    return replace(IDENTITY, matrix=matrix, gain=float(scale), shift=float(shift))


def mirror_augmentation(augmentation: Augmentation) -> Augmentation:
    """Return `augmentation` with the crop mirrored along its first axis, which is the patient's right-left axis."""
    return replace(augmentation, matrix=augmentation.matrix @ np.diag([-1.0, 1.0, 1.0]))


def is_mirrored(augmentation: Augmentation) -> bool:
    """Return True when the augmented crop is a mirror image (its affine map changes the handedness)."""
    return bool(np.linalg.det(augmentation.matrix) < 0)


def crop_augmented(
    image: Tensor, labels: Tensor, center: np.ndarray, size: Sequence[int], augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """Return one augmented crop (C, *size) and its labels (*size); see `crop_batch_augmented`."""
    crops, targets = crop_batch_augmented(image, labels, [center], size, [augmentation])
    return crops[0], targets[0]


def crop_batch_augmented(
    image: Tensor,
    labels: Tensor,
    centers: Sequence[np.ndarray],
    size: Sequence[int],
    augmentations: Sequence[Augmentation],
) -> tuple[Tensor, Tensor]:
    """Crop and augment a scan at several centers, with one interpolation for all spatial augmentations.

    Args:
        image: Whole scan (C, H, W, D).
        labels: Its label map (H, W, D), on the same device.
        centers: B centers (3,) in voxels of the scan.
        size: Edges of the crops in voxels.
        augmentations: B augmentations.

    Returns:
        Crops (B, C, *size) in float32 and labels (B, *size) in the data type of `labels`. Outside the scan the image is 0
        and the label is background.
    """
    device = image.device
    grid = _sampling_grid(np.stack(centers), size, augmentations, image.shape[1:]).to(device)
    # On a CPU, torch interpolates each sample on one thread. Each crop is split into slabs so that all threads work; the
    # expanded scan is not copied.
    slabs = next((n for n in (4, 3, 2) if size[0] % n == 0), 1) if device.type == "cpu" else 1
    grid = grid.view(len(augmentations) * slabs, size[0] // slabs, size[1], size[2], 3)

    def sample(scan: Tensor, mode: str) -> Tensor:
        sampled = F.grid_sample(
            scan[None].expand(len(grid), -1, -1, -1, -1), grid, mode=mode, padding_mode="zeros", align_corners=False
        )
        sampled = sampled.view(len(augmentations), slabs, len(scan), -1, *size[1:]).transpose(1, 2)
        return sampled.reshape(len(augmentations), len(scan), *size)

    crops, targets = sample(image, "bilinear"), sample(labels[None].float(), "nearest")
    return _augment_intensities(crops, augmentations), targets[:, 0].to(labels.dtype)


def _sampling_grid(
    centers: np.ndarray, size: Sequence[int], augmentations: Sequence[Augmentation], shape: Sequence[int]
) -> Tensor:
    """Return the positions (B, *size, 3) of the crops' voxels in a scan of `shape`, in the coordinates of `grid_sample`.

    These run from -1 to 1 from edge to edge (align_corners False), with the last axis first.
    """
    extent = np.array(shape, float)
    matrices = np.stack([augmentation.matrix for augmentation in augmentations]) * 2 / extent[:, None]
    starts = (centers * 2 + 1) / extent - 1
    steps = torch.as_tensor(matrices[:, ::-1].copy(), dtype=torch.float32)  # (B, scan axis, crop axis)
    grid = torch.as_tensor(starts[:, ::-1].copy(), dtype=torch.float32)[:, None, None, None]
    for axis, n in enumerate(size):
        line = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        line = line.view([-1 if other == axis else 1 for other in range(3)])
        grid = grid + line[None, ..., None] * steps[:, None, None, None, :, axis]
    if any(augmentation.displacement.any() for augmentation in augmentations):
        displacements = np.stack([augmentation.displacement for augmentation in augmentations])
        displacements = displacements * (2 / extent)[:, None, None, None]
        lattices = torch.as_tensor(displacements[:, ::-1].copy(), dtype=torch.float32)
        grid = grid + F.interpolate(lattices, size=tuple(size), mode="trilinear", align_corners=True).movedim(1, -1)
    return grid


def _augment_intensities(crops: Tensor, augmentations: Sequence[Augmentation]) -> Tensor:
    """Apply blur, gamma, gain, shift and noise to crops (B, C, H, W, D), each with its own parameters."""
    device = crops.device

    def per_crop(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=crops.dtype).to(device).view(-1, 1, 1, 1, 1)

    blurred = [index for index, augmentation in enumerate(augmentations) if augmentation.blur]
    if blurred:
        crops[blurred] = _blur(crops[blurred], [augmentations[index].blur for index in blurred])
    if any(augmentation.gamma != 1 for augmentation in augmentations):
        crops = crops.clamp(min=0) ** per_crop([augmentation.gamma for augmentation in augmentations])
    if any((augmentation.gain, augmentation.shift) != (1.0, 0.0) for augmentation in augmentations):
        gains = per_crop([augmentation.gain for augmentation in augmentations])
        crops = crops * gains + per_crop([augmentation.shift for augmentation in augmentations])
    for index, augmentation in enumerate(augmentations):
        if augmentation.noise:
            generator = torch.Generator(device).manual_seed(augmentation.seed)
            noise = torch.randn(crops.shape[1:], generator=generator, device=device)
            crops[index] += augmentation.noise * noise
    return crops


def _blur(crops: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur each crop (B, C, H, W, D) with a Gaussian of its own sigma (voxels), cut off at two sigmas, zero outside."""
    kernels = [gaussian_1d(torch.tensor(sigma), truncated=2.0) for sigma in sigmas]
    radius = max(len(kernel) // 2 for kernel in kernels)
    weights = torch.stack([F.pad(kernel, [radius - len(kernel) // 2] * 2) for kernel in kernels]).to(crops.device)
    for axis in (2, 3, 4):
        padded = F.pad(crops, [radius if other == axis else 0 for other in (4, 3, 2) for _ in range(2)])
        crops = sum(  # type: ignore[assignment]
            padded.narrow(axis, offset, crops.shape[axis]) * weights[:, offset].view(-1, 1, 1, 1, 1)
            for offset in range(2 * radius + 1)
        )
    return crops

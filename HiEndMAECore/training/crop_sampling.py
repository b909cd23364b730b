"""Samples of a pretraining run: the crop, its augmentation and its mask.

Sample `i` of a run is drawn from a generator keyed by (seed, i). It is therefore the same for any number of processes and
threads, and for a run that was stopped and resumed. This module draws the parameters; the augmentation is applied to the
whole batch on the training device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.networks.masking import random_masking

from .augmentation import Flip, apply_flips, draw_flip, draw_unrotated_flip, flip_only, sample_generator
from .objectives.base import PretrainingObjective

CROPS_PER_EPOCH = 8  # crops of each scan in one epoch (paper section 4.1)
_TISSUE_FRACTION = 0.75  # of the crops are centered on tissue (positive : negative = 3 : 1)
_PREFETCHED_BATCHES = 2  # batches that are ready, in addition to those being read


@dataclass(frozen=True)
class Batch:
    """Crops as they lie in the store, with the parameters of their augmentation and masking.

    Attributes:
        volume: Crops (B, C, H, W, D) in [0, 1].
        permutation: (B, L) long, a random order of the patches; the first ones are visible and the others masked.
        flips: One augmentation for each crop.
        valid_mask: (B, 1, H, W, D) bool, False in padding; None when no crop is padded.
    """

    volume: Tensor
    permutation: Tensor
    flips: tuple[Flip, ...]
    valid_mask: Tensor | None

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the augmented batch on `device`: (volume in float32, permutation, valid mask)."""
        volume = self.volume.to(device, non_blocking=True).float()
        valid_mask = None
        if self.valid_mask is not None:
            flips = [flip_only(flip) for flip in self.flips]
            valid_mask = apply_flips(self.valid_mask.to(device, non_blocking=True), flips)
        return apply_flips(volume, self.flips), self.permutation.to(device, non_blocking=True), valid_mask


@dataclass(frozen=True)
class CropSampler:
    """Sampler of the crops of a pretraining run.

    Attributes:
        store: Store of preprocessed scans.
        size: Edges of a crop in voxels.
        patches: Number of patches of a crop.
        seed: Seed of the run.
        unrotated: True when crops keep the patients' orientation, as in fine-tuning (used by inpainting). Otherwise they
            are mirrored and rotated.
    """

    store: CropStore
    size: tuple[int, int, int]
    patches: int
    seed: int
    unrotated: bool = False

    @classmethod
    def for_model(cls, store: CropStore, model: PretrainingObjective, seed: int) -> CropSampler:
        """Return the sampler of crops of the size that `model` takes."""
        h, w, d = (edge * model.patch_size for edge in model.grid)
        return cls(store, (h, w, d), model.grid[0] * model.grid[1] * model.grid[2], seed, model.unrotated_crops)

    def draw(self, index: int) -> Batch:
        """Draw sample `index` of the run, as a batch of one crop."""
        rng = sample_generator(self.seed, index)
        scan = scan_index(index, len(self.store), self.seed)
        start = draw_start(self.store, scan, self.size, rng)
        flip = draw_unrotated_flip(rng) if self.unrotated else draw_flip(rng, square=self.size[0] == self.size[1])
        crop = self.store.crop(scan, start=start, size=self.size)
        permutation = random_masking(1, self.patches, rng=rng)
        return Batch(torch.from_numpy(crop)[None], permutation, (flip,), self._valid_mask(scan, start))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Draw the samples `indices` as one batch."""
        samples = [self.draw(index) for index in indices]
        valid_mask = None
        if any(sample.valid_mask is not None for sample in samples):
            all_valid = torch.ones((1, 1, *self.size), dtype=torch.bool)
            valid_mask = torch.cat(
                [all_valid if sample.valid_mask is None else sample.valid_mask for sample in samples]
            )
        return Batch(
            torch.cat([sample.volume for sample in samples]),
            torch.cat([sample.permutation for sample in samples]),
            tuple(sample.flips[0] for sample in samples),
            valid_mask,
        )

    def batches(self, parts: Iterator[Sequence[int]], *, workers: int, pinned: bool) -> Iterator[Batch]:
        """Yield one batch for each element of `parts`, in order.

        Threads read ahead instead of processes: reading and decompressing release Python's lock, nothing is copied between
        processes, and the behavior is the same on every operating system.

        Args:
            parts: Sample indices of each batch.
            workers: Number of threads that read ahead; 0 reads in the calling thread.
            pinned: True when the volumes are placed in pinned memory, for a CUDA device.
        """

        def read(indices: Sequence[int]) -> Batch:
            batch = self.batch(indices)
            if not pinned:
                return batch
            return Batch(batch.volume.pin_memory(), batch.permutation, batch.flips, batch.valid_mask)

        if workers == 0:
            yield from map(read, parts)
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="crops") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for indices in parts:
                    waiting.append(pool.submit(read, indices))
                    if len(waiting) > workers + _PREFETCHED_BATCHES:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of the scans that the samples `indices` are cropped from."""
        scans = {scan_index(index, len(self.store), self.seed) for index in indices}
        return [self.store.manifest["scans"][scan]["name"] for scan in sorted(scans)]

    def _valid_mask(self, scan: int, start: Sequence[int]) -> Tensor | None:
        """Return the valid mask (1, 1, *size) of the crop at `start`, or None when the crop lies within the scan."""
        edges = self.store.valid_box(scan, start=start, size=self.size)
        if all(edge == (0, length) for edge, length in zip(edges, self.size)):
            return None
        valid_mask = torch.zeros((1, 1, *self.size), dtype=torch.bool)
        h, w, d = (slice(*edge) for edge in edges)
        valid_mask[:, :, h, w, d] = True
        return valid_mask


def scan_index(index: int, scans: int, seed: int) -> int:
    """Return which of `scans` sample `index` is cropped from.

    Every epoch takes `CROPS_PER_EPOCH` crops of each scan in a random order of its own. Crops are shuffled over the whole
    epoch, so that even a small batch contains several scans.
    """
    epoch, position = divmod(index, CROPS_PER_EPOCH * scans)
    return int(_epoch_order(seed, epoch, scans)[position])


@lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, scans: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch, scans)).permutation(CROPS_PER_EPOCH * scans) // CROPS_PER_EPOCH


def draw_start(store: CropStore, scan: int, size: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Draw the first voxel of a crop.

    Three of four crops are centered on a tissue voxel and the others anywhere. The crop lies within the scan where it fits;
    a smaller scan is centered in its crop.

    Args:
        store: Store of preprocessed scans.
        scan: Index of the scan.
        size: Edges of the crop in voxels.
        rng: Generator of the sample.
    """
    shape = store.shape(scan)
    tissue = store.tissue(scan)
    if len(tissue) and rng.random() < _TISSUE_FRACTION:
        center = tissue[int(rng.integers(len(tissue)))]
    else:
        center = [int(rng.integers(length)) for length in shape]
    starts = []
    for middle, edge, length in zip(center, size, shape):
        margin = length - edge
        low, high = (0, margin) if margin >= 0 else (margin // 2, margin // 2)
        starts.append(int(np.clip(int(middle) - edge // 2, low, high)))
    return starts

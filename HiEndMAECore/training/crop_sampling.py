"""The samples of a pretraining run: which crop of which scan, how it is changed, and which of its patches are hidden.

Sample `i` of a run is drawn from a generator keyed by (seed, i): the same for any number of processes and threads, and
for a run that was stopped and resumed. Parameters are drawn here; the changes themselves are made on the whole batch,
on the device that trains.
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
from HiEndMAECore.networks import HiEndMAE

from .augmentation import Flip, apply_flips, draw_flip, draw_unrotated_flip, flip_only, sample_generator
from .objectives.inpainting import Inpainting

CROPS_PER_EPOCH = 8  # crops of one scan each time all are visited (paper section 4.1)
_POSITIVE = 0.75  # positive : negative = 3 : 1
_AHEAD = 2  # batches that wait ready, beside those being read


@dataclass(frozen=True)
class Batch:
    """Crops as the store has them, and what is to become of them.

    volume (B, C, H, W, D) in [0, 1]; permutation (B, L) long; flips: one a crop; inside (B, 1, H, W, D) bool, False in
    padding, None when no crop has any.
    """

    volume: Tensor
    permutation: Tensor
    flips: tuple[Flip, ...]
    inside: Tensor | None

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
        """(volume, permutation, inside) for the model, on `device`, changed as drawn; volume is float32."""
        volume = self.volume.to(device, non_blocking=True).float()
        inside = None
        if self.inside is not None:
            inside = apply_flips(self.inside.to(device, non_blocking=True), [flip_only(flip) for flip in self.flips])
        return apply_flips(volume, self.flips), self.permutation.to(device, non_blocking=True), inside


@dataclass(frozen=True)
class CropSampler:
    """Draws the samples of a run from `store` for crops of `size` voxels in `patches` patches.

    upright: the crops lie as patients do, as those of fine-tuning will (inpainting), instead of turned and mirrored.
    """

    store: CropStore
    size: tuple[int, int, int]
    patches: int
    seed: int
    upright: bool = False

    @classmethod
    def for_model(cls, store: CropStore, model: HiEndMAE | Inpainting, seed: int) -> CropSampler:
        h, w, d = (edge * model.patch_size for edge in model.grid)
        return cls(store, (h, w, d), model.grid[0] * model.grid[1] * model.grid[2], seed, isinstance(model, Inpainting))

    def draw(self, index: int) -> Batch:
        """Sample `index` of the run, as a batch of one."""
        rng = sample_generator(self.seed, index)
        scan = scan_index(index, len(self.store), self.seed)
        start = draw_start(self.store, scan, self.size, rng)
        flip = draw_unrotated_flip(rng) if self.upright else draw_flip(rng, square=self.size[0] == self.size[1])
        crop = self.store.crop(scan, start=start, size=self.size)
        permutation = torch.from_numpy(rng.random(self.patches).argsort())
        return Batch(torch.from_numpy(crop)[None], permutation[None], (flip,), self._inside(scan, start))

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples `indices` together."""
        samples = [self.draw(index) for index in indices]
        inside = None
        if any(sample.inside is not None for sample in samples):
            whole = torch.ones((1, 1, *self.size), dtype=torch.bool)
            inside = torch.cat([whole if sample.inside is None else sample.inside for sample in samples])
        return Batch(
            torch.cat([sample.volume for sample in samples]),
            torch.cat([sample.permutation for sample in samples]),
            tuple(sample.flips[0] for sample in samples),
            inside,
        )

    def batches(self, parts: Iterator[Sequence[int]], *, workers: int, pinned: bool) -> Iterator[Batch]:
        """The batches of `parts` in their order; `workers` threads read ahead (0: none).

        Threads, not processes: reading and decompressing leave Python's lock, nothing is copied between processes, and
        it is the same on every system.
        """

        def read(indices: Sequence[int]) -> Batch:
            batch = self.batch(indices)
            return Batch(batch.volume.pin_memory(), batch.permutation, batch.flips, batch.inside) if pinned else batch

        if workers == 0:
            yield from map(read, parts)
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="crops") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for indices in parts:
                    waiting.append(pool.submit(read, indices))
                    if len(waiting) > workers + _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _inside(self, scan: int, start: Sequence[int]) -> Tensor | None:
        """(1, 1, *size) bool: which voxels of the crop at `start` are the scan's; None: all."""
        edges = self.store.valid_box(scan, start=start, size=self.size)
        if all(edge == (0, wanted) for edge, wanted in zip(edges, self.size)):
            return None
        inside = torch.zeros((1, 1, *self.size), dtype=torch.bool)
        h, w, d = (slice(*edge) for edge in edges)
        inside[:, :, h, w, d] = True
        return inside

    def names(self, indices: Sequence[int]) -> list[str]:
        """Names of the scans that the samples `indices` come from."""
        scans = {scan_index(index, len(self.store), self.seed) for index in indices}
        return [self.store.manifest["scans"][scan]["name"] for scan in sorted(scans)]


def scan_index(index: int, scans: int, seed: int) -> int:
    """Which of `scans` sample `index` comes from: every lap takes 8 crops of each, in an order of its own.

    Crops are mixed over the whole lap, so that even a small batch sees several scans.
    """
    lap, place = divmod(index, CROPS_PER_EPOCH * scans)
    return int(_order(seed, lap, scans)[place])


@lru_cache(maxsize=4)
def _order(seed: int, lap: int, scans: int) -> np.ndarray:
    return np.random.default_rng((seed, lap, scans)).permutation(CROPS_PER_EPOCH * scans) // CROPS_PER_EPOCH


def draw_start(store: CropStore, scan: int, size: Sequence[int], rng: np.random.Generator) -> list[int]:
    """First voxel of a crop: around a tissue voxel three times of four, else anywhere; inside the scan where it fits."""
    shape = store.shape(scan)
    tissue = store.tissue(scan)
    if len(tissue) and rng.random() < _POSITIVE:
        center = tissue[int(rng.integers(len(tissue)))]
    else:
        center = [int(rng.integers(length)) for length in shape]
    starts = []
    for middle, wanted, there in zip(center, size, shape):
        room = there - wanted
        low, high = (0, room) if room >= 0 else (room // 2, room // 2)  # a small scan sits in the middle of its crop
        starts.append(int(np.clip(int(middle) - wanted // 2, low, high)))
    return starts

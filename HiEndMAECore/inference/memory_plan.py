"""How much memory there is, how much a scan will take, and the plan made from the two before the first tile.

Bytes everywhere; people are told GB (10^9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from HiEndMAECore.errors import OutOfMemoryError
from HiEndMAECore.runtime.memory import BYTES_PER_VOXEL_READING, CPU, Cost, free_memory

BYTES_PER_VOXEL_RESAMPLING = (
    16  # a voxel, while labels return: best and present share, float32 each and twice in the making, and labels
)
_SPARE = 0.9  # of what is free, the part that is used
LARGEST_BATCH = 4  # tiles; a tile of 96^3 fills any processor, smaller ones soon do


@dataclass(frozen=True)
class MemoryPlan:
    """How one scan goes through the network: tiles a batch, where and in which numbers logits are added up.

    needed: bytes that the sums take, in whole. expected: seconds, None when no tile was timed.
    """

    batch: int
    accumulate: torch.device
    dtype: torch.dtype
    needed: int
    tiles: int
    expected: float | None = None

    def message(self) -> dict[str, Any]:
        """For events."""
        place, kind = str(self.accumulate), str(self.dtype)
        return {"tiles": self.tiles, "batch": self.batch, "sums_bytes": self.needed, "sums_on": place, "sums_in": kind}

    def __str__(self) -> str:
        kind = {torch.float32: "32-bit", torch.float16: "16-bit"}[self.dtype]
        where = "system memory" if self.accumulate == CPU else f"the memory of {self.accumulate}"
        time_left = "" if self.expected is None else f", about {self.expected:.0f} s"
        return (
            f"Plan: {self.tiles} tiles, {self.batch} at a time, sums of {self.needed / 1e9:.2f} GB in {where} "
            f"({kind}){time_left}."
        )


def plan_memory(
    voxels: int,
    *,
    classes: int,
    tiles: int,
    device: torch.device,
    probe: Cost,
    free_device: int,
    free_system: int,
) -> MemoryPlan:
    """The fastest way that fits: sums in 32 bit beside the network, else in system memory, else there in 16 bit.

    Raises `OutOfMemoryError` where none does: better than a machine that stands still.

    voxels: for which sums are held at once. probe: what one tile took.
    On the CPU tiles go one at a time: more at once keep it no busier.
    """
    tile = probe.bytes or 0
    choices = [
        (device, torch.float32, free_device),
        (CPU, torch.float32, free_system),
        (CPU, torch.float16, free_system),
    ]
    for accumulate, dtype, free in choices:
        needed = voxels * (classes * dtype.itemsize + 4)  # and the weights
        if needed + (tile if accumulate == device else 0) <= _SPARE * free:
            break
    else:
        tight = needed + tile
        if tight > free_system:
            raise OutOfMemoryError(
                "scan_too_large",
                f"The scan needs {tight / 1e9:.2f} GB of memory at this spacing; {free_system / 1e9:.2f} GB are free.",
                "Close other programs, or use a larger --spacing.",
            )
    room = _SPARE * free_device - (needed if accumulate == device else 0)
    batch = 1 if device.type == "cpu" or not tile else int(min(LARGEST_BATCH, max(1, room // tile)))
    return MemoryPlan(batch, accumulate, dtype, needed, tiles, probe.seconds * tiles if probe.seconds else None)


def has_room_for(voxels: int, channels: int) -> bool:
    """May another scan like this (stored voxels) be read, or its result be finished, beside the work at hand?"""
    return voxels * (BYTES_PER_VOXEL_READING * channels + BYTES_PER_VOXEL_RESAMPLING) < _SPARE * free_memory(CPU)


def check_resampling_memory(voxels: int) -> None:
    """Raise `OutOfMemoryError` where labels could not be brought back to a scan of so many stored voxels."""
    needed, free = voxels * BYTES_PER_VOXEL_RESAMPLING, free_memory(CPU)
    if needed > free:
        raise OutOfMemoryError(
            "scan_too_large",
            f"The result of this scan needs {needed / 1e9:.2f} GB of memory; {free / 1e9:.2f} GB are free.",
            "Close other programs, or crop the scan.",
        )

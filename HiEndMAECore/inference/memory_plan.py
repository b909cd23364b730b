"""The memory plan of a scan: how many tiles at a time, and where and in which precision their logits are summed.

The plan is made before the first tile, from the memory that is free and the memory that the scan needs. Sizes are in bytes;
messages show GB (10^9 bytes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from HiEndMAECore.errors import OutOfMemoryError
from HiEndMAECore.runtime.memory import BYTES_PER_VOXEL_READING, CPU, Cost, free_memory

# Resampling a label map holds the largest and the current share of a label (float32 each, twice while they are computed)
# and the label map.
BYTES_PER_VOXEL_RESAMPLING = 16
MAX_BATCH_SIZE = 4  # tiles; one tile of 96^3 occupies any processor, and a few smaller ones do
_USABLE_FRACTION = 0.9  # of the free memory
_WEIGHT_BYTES = 4  # a voxel has one sum of Gaussian weights, float32, beside the sums of its logits


@dataclass(frozen=True)
class MemoryPlan:
    """How one scan goes through the network.

    Args:
        batch_size: Tiles in one forward pass.
        sums_device: Device on which the logits are summed.
        sums_dtype: Number format of the sums.
        sums_bytes: Size of the sums that are in memory at once.
        tile_count: Tiles of the whole scan.
        expected_seconds: Estimated time of all tiles; None if no tile was timed.
    """

    batch_size: int
    sums_device: torch.device
    sums_dtype: torch.dtype
    sums_bytes: int
    tile_count: int
    expected_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON, with the field names of the event `expected_seconds`."""
        return {
            "tiles": self.tile_count,
            "batch": self.batch_size,
            "sums_bytes": self.sums_bytes,
            "sums_on": str(self.sums_device),
            "sums_in": str(self.sums_dtype),
        }

    def __str__(self) -> str:
        precision = {torch.float32: "32-bit", torch.float16: "16-bit"}[self.sums_dtype]
        memory = "system memory" if self.sums_device == CPU else f"the memory of {self.sums_device}"
        duration = "" if self.expected_seconds is None else f", about {self.expected_seconds:.0f} s"
        return (
            f"Plan: {self.tile_count} tiles, {self.batch_size} at a time, sums of {self.sums_bytes / 1e9:.2f} GB in "
            f"{memory} ({precision}){duration}."
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
    """Return the fastest plan that fits: 32-bit sums on the device, else 32-bit, else 16-bit sums in system memory.

    On the CPU the batch size is 1, because more tiles at once do not occupy it better.

    Args:
        voxels: Voxels whose sums are in memory at once.
        classes: Classes of the network, with the background.
        tiles: Tiles of the whole scan.
        device: Device that computes the tiles.
        probe: Measured cost of one tile.
        free_device: Free memory of `device`, bytes.
        free_system: Free system memory, bytes.

    Raises:
        OutOfMemoryError: `scan_too_large`; not even 16-bit sums fit. A refusal is better than a computer that swaps.
    """
    tile_bytes = probe.bytes or 0
    choices = [
        (device, torch.float32, free_device),
        (CPU, torch.float32, free_system),
        (CPU, torch.float16, free_system),
    ]
    for sums_device, dtype, free in choices:
        sums_bytes = voxels * (classes * dtype.itemsize + _WEIGHT_BYTES)
        # A tile takes memory of the device that computes it; only there must it fit beside the sums.
        needed = sums_bytes + (tile_bytes if sums_device == device else 0)
        if needed <= _USABLE_FRACTION * free:
            break
    else:
        if needed > free_system:
            raise OutOfMemoryError(
                "scan_too_large",
                f"The scan needs {needed / 1e9:.2f} GB of memory at this spacing; {free_system / 1e9:.2f} GB are free.",
                "Close other programs, or use a larger --spacing.",
            )
    batch_bytes = _USABLE_FRACTION * free_device - (sums_bytes if sums_device == device else 0)
    batch_size = 1
    if device.type != "cpu" and tile_bytes:
        batch_size = int(min(MAX_BATCH_SIZE, max(1, batch_bytes // tile_bytes)))
    expected_seconds = probe.seconds * tiles if probe.seconds else None
    return MemoryPlan(batch_size, sums_device, dtype, sums_bytes, tiles, expected_seconds)


def has_memory_for_overlap(voxels: int, channels: int) -> bool:
    """Return whether reading or writing a scan of this size fits in memory beside the scan that is being computed.

    Args:
        voxels: Voxels of the scan as stored, of one channel.
        channels: Channels of the scan.
    """
    needed = voxels * (BYTES_PER_VOXEL_READING * channels + BYTES_PER_VOXEL_RESAMPLING)
    return needed < _USABLE_FRACTION * free_memory(CPU)


def check_resampling_memory(voxels: int) -> None:
    """Check that the label map of a scan of `voxels` stored voxels can be resampled to its original grid.

    Raises:
        OutOfMemoryError: `scan_too_large`, with the memory needed and the memory that is free.
    """
    needed, free = voxels * BYTES_PER_VOXEL_RESAMPLING, free_memory(CPU)
    if needed > free:
        raise OutOfMemoryError(
            "scan_too_large",
            f"The result of this scan needs {needed / 1e9:.2f} GB of memory; {free / 1e9:.2f} GB are free.",
            "Close other programs, or crop the scan.",
        )

"""Memory: how much is free on a device or in the system, and how much a block of code takes at its peak. Values in bytes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

CPU = torch.device("cpu")
# For each voxel and channel while a scan is read and preprocessed: as stored, as float32, and intermediate copies.
BYTES_PER_VOXEL_READING = 20
_SAMPLING_SECONDS = 0.002


@dataclass
class Cost:
    """The measured cost of a block of code, such as one tile.

    Attributes:
        bytes: Additional memory at the peak; None where it was not measured.
        seconds: Wall-clock time.
    """

    bytes: int | None = None
    seconds: float = 0.0


def free_memory(device: torch.device) -> int:
    """Return the bytes that can still be allocated.

    Args:
        device: A graphics card; or `cpu` for the memory of the system, within the limits of this process's control groups.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    available = int(psutil.virtual_memory().available)
    return min([available, *_group_memory(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _group_memory(root: Path, membership: Path) -> Iterator[int]:
    """Yield the free memory of each Linux control group of this process that has a limit (version 2, then version 1).

    Containers and batch systems limit a group; psutil reports the memory of the whole machine.

    Args:
        root: Where the control groups are mounted.
        membership: The file that lists the groups of this process.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        limit_file, usage_file = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if not controllers:
            limit_file, usage_file = ("memory.max", "memory.current")
        top = root / controllers
        innermost = top / group.lstrip("/")
        for folder in (innermost, *innermost.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or the limit is "max"
                limit = int((folder / limit_file).read_text())
                statistics = dict(pair.split() for pair in (folder / "memory.stat").read_text().splitlines())
                cache = int(statistics.get("inactive_file", 0))  # the system frees it on demand
                yield max(0, limit - (int((folder / usage_file).read_text()) - cache))
            if folder == top:
                break


@contextlib.contextmanager
def measure_peak(device: torch.device) -> Iterator[Cost]:
    """Measure the time and the additional memory of the `with` block.

    On CUDA the allocator reports the peak. Elsewhere the resident memory of this process is sampled every 2 ms.

    Args:
        device: Where the block computes.

    Yields:
        The cost, which is filled in when the block ends.
    """
    cost = Cost()
    start = time.monotonic()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield cost
        torch.cuda.synchronize(device)
        cost.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with _sample_resident_memory(cost):
            yield cost
    cost.seconds = time.monotonic() - start


@contextlib.contextmanager
def _sample_resident_memory(cost: Cost) -> Iterator[None]:
    """Set `cost.bytes` to the largest growth of this process's resident memory during the block."""
    process = psutil.Process()
    before = process.memory_info().rss
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        peak = max(peak, process.memory_info().rss - before)

    def keep_sampling() -> None:
        while not done.wait(_SAMPLING_SECONDS):
            sample()

    sampler = threading.Thread(target=keep_sampling, daemon=True)
    sampler.start()
    try:
        yield
    finally:
        done.set()
        sampler.join()
        sample()
    cost.bytes = peak

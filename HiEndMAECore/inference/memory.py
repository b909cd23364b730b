"""How much memory there is, how much a scan will take, and the plan made from the two before the first tile.

Bytes everywhere; people are told GB (10^9).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from HiEndMAECore.errors import OutOfMemoryError

CPU = torch.device("cpu")
READ_BYTES = 20  # a voxel and channel, while a scan is read and prepared: as stored, float32, and copies in the making
HOME_BYTES = (
    16  # a voxel, while labels return: best and present share, float32 each and twice in the making, and labels
)
_SPARE = 0.9  # of what is free, the part that is used
LARGEST_BATCH = 4  # tiles; a tile of 96^3 fills any processor, smaller ones soon do
_GUESS = 4 * 10**9  # where a system tells nothing


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

    def told(self) -> dict[str, Any]:
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


@dataclass
class Footprint:
    """What one tile cost: extra bytes at its peak (None where that cannot be seen) and seconds."""

    bytes: int | None = None
    seconds: float = 0.0


def plan_memory(
    voxels: int,
    *,
    classes: int,
    tiles: int,
    device: torch.device,
    probe: Footprint,
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
    return voxels * (READ_BYTES * channels + HOME_BYTES) < _SPARE * free_memory(CPU)


def refuse_if_home_is_short(voxels: int) -> None:
    """Raise `OutOfMemoryError` where labels could not be brought back to a scan of so many stored voxels."""
    needed, free = voxels * HOME_BYTES, free_memory(CPU)
    if needed > free:
        raise OutOfMemoryError(
            "scan_too_large",
            f"The result of this scan needs {needed / 1e9:.2f} GB of memory; {free / 1e9:.2f} GB are free.",
            "Close other programs, or crop the scan.",
        )


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device, or in the system (`cpu`)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return max(0, int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()))
    return min([_system_memory(), *_group_memory(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))])


def _system_memory() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ImportError):
        import psutil

        return int(psutil.virtual_memory().available)
    if sys.platform == "win32":
        import ctypes

        class Status(ctypes.Structure):
            _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
                (name, ctypes.c_ulonglong) for name in ("total", "free", "a", "b", "c", "d", "e")
            ]

        status = Status(length=ctypes.sizeof(Status))
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
            return int(status.free)
        return _GUESS
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS: half of what is built in
    except (ValueError, OSError):
        return _GUESS


def _group_memory(root: Path, own: Path) -> Iterator[int]:
    """What a container or a batch system leaves to this process's group and those above it (cgroup 2, then 1)."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers
        limit, used = ("memory.max", "memory.current") if not controllers else (
            "memory.limit_in_bytes", "memory.usage_in_bytes",
        )  # fmt: skip
        here = top / group.lstrip("/")
        for folder in (here, *here.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or the limit is "max"
                most = int((folder / limit).read_text())
                stat = dict(pair.split() for pair in (folder / "memory.stat").read_text().splitlines())
                taken = int((folder / used).read_text()) - int(stat.get("inactive_file", 0))  # the cache gives way
                yield max(0, most - taken)
            if folder == top:
                break


@contextlib.contextmanager
def watch(device: torch.device) -> Iterator[Footprint]:
    """Measure the block: seconds, and the extra memory at its peak (CUDA; else Linux, by looking often)."""
    found = Footprint()
    start = time.monotonic()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        torch.cuda.synchronize(device)
        found.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        with _resident_peak() as peak:
            yield found
        found.bytes = peak[0] if peak else None
    found.seconds = time.monotonic() - start


@contextlib.contextmanager
def _resident_peak() -> Iterator[list[int]]:
    """The growth of this process's resident memory at its peak: one number, or none where that cannot be seen."""
    peak: list[int] = []
    try:
        before = _resident()
    except OSError:
        yield peak
        return
    peak.append(0)
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident() - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak[0] = max(peak[0], _resident() - before)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

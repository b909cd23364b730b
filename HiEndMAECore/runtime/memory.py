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

import torch

CPU = torch.device("cpu")
BYTES_PER_VOXEL_READING = (
    20  # a voxel and channel, while a scan is read and prepared: as stored, float32, and copies in the making
)
_FALLBACK_BYTES = 4 * 10**9  # where a system tells nothing


@dataclass
class Cost:
    """What one tile cost: extra bytes at its peak (None where that cannot be seen) and seconds."""

    bytes: int | None = None
    seconds: float = 0.0


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
        return _FALLBACK_BYTES
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS: half of what is built in
    except (ValueError, OSError):
        return _FALLBACK_BYTES


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
def measure_peak(device: torch.device) -> Iterator[Cost]:
    """Measure the block: seconds, and the extra memory at its peak (CUDA; else Linux, by looking often)."""
    found = Cost()
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

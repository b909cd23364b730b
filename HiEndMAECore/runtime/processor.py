"""The processor of this computer: its name, and what torch can use of it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from .devices import cpu_has_bf16

_CPU_INFO = Path("/proc/cpuinfo")
_FAST_INSTRUCTIONS = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16"}


def processor_name() -> str:
    """Return the name of the processor as its maker gives it; the architecture where the system does not know it."""
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    if sys.platform == "darwin":
        try:
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or platform.machine() or "an unknown processor"


def describe_processor() -> str:
    """Return name, instruction set and arithmetic: "Intel(R) Xeon(R) Processor, AVX512, with bf16". Needs torch."""
    import torch

    bf16 = "with bf16" if cpu_has_bf16() else "without bf16"
    return f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}, {bf16}"


def processor_flags() -> list[str]:
    """Return the instruction sets of this processor that decide its speed here, such as avx2; empty where unknown."""
    if not _CPU_INFO.exists():
        return []
    flags: set[str] = set()
    for line in _CPU_INFO.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags |= set(value.split())
    return sorted(flags & _FAST_INSTRUCTIONS)


def repository_commit(folder: Path) -> str | None:
    """Return the commit of a git checkout, with "+" where files were changed; None where there is none."""
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=True)
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")

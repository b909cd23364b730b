"""What this computer can run: installed packages, cores, memory, disk, and the devices that torch can use.

Imports on a bare Python, because `doctor` also answers before anything is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .devices import card_is_usable, mps_is_usable
from .requirements import OPTIONAL, REQUIRED, fault_of, installed, name_of, pip_install, version_numbers

_CUDA_WHEELS = "--index-url https://download.pytorch.org/whl/{}"
_CUDA_12_6_WHEELS = _CUDA_WHEELS.format("cu126")  # for cards up to compute capability 9.0
_CUDA_12_8_WHEELS = _CUDA_WHEELS.format("cu128")  # for cards from compute capability 7.5 on
_SMALL_MEMORY_GB = 7.5
_SMALL_DISK_GB = 5.0


class Problem(NamedTuple):
    """Something that limits what this computer can run: a stable code, one sentence, and one sentence of advice."""

    code: str
    message: str
    advice: str


@dataclass(frozen=True)
class PackageStatus:
    """A required or optional package.

    Attributes:
        requirement: The requirement, such as "torch>=2.2,!=2.9.*".
        version: The installed version, None when it is absent.
        fault: What is wrong with it, as `requirements.fault_of` returns it; empty when it can be used.
    """

    requirement: str
    version: str | None
    fault: str

    @property
    def name(self) -> str:
        """The name of the package."""
        return name_of(self.requirement)

    @property
    def blocks(self) -> bool:
        """True when the engine cannot run because of this package. An excluded version runs, but slowly."""
        return bool(self.fault) and self.requirement in REQUIRED and self.fault != "excluded"

    @property
    def problem(self) -> Problem | None:
        """The problem of a package that does not block, None when it has none."""
        if self.fault and self.requirement in OPTIONAL:
            message = f"{self.name} is {self.fault}; it is needed {OPTIONAL[self.requirement]}."
            return Problem("extra_missing", message, pip_install(self.requirement))
        if self.fault == "excluded":
            message = f"{self.name} {self.version} computes 3D convolutions about 4 times slower under autocast."
            return Problem("torch_slow", message, pip_install(self.requirement))
        return None


def check_packages() -> list[PackageStatus]:
    """Return the status of all required, then of all optional packages. Importing each of them finds broken ones."""
    return [PackageStatus(line, installed(line), fault_of(line)) for line in (*REQUIRED, *OPTIONAL)]


def install_advice(blocking: list[PackageStatus]) -> str:
    """Return the commands that install packages, with a CUDA build of torch where pip would choose a CPU build."""
    commands = [pip_install(*(package.requirement for package in blocking))]
    driver = driver_cuda_version()
    if sys.platform == "win32" and driver and any(package.name == "torch" for package in blocking):
        torch = next(line for line in REQUIRED if name_of(line) == "torch")
        commands.insert(0, f"{pip_install(torch)} {_wheels_for(driver)}")
    return f"Install with: {' and then: '.join(commands)}"


@dataclass(frozen=True)
class Machine:
    """The resources of this computer.

    Attributes:
        cores: Logical processor cores.
        memory_gb: Memory in GB (10^9 bytes); 0 when it is unknown because psutil is not installed.
        disk_free_gb: Free space in GB on the disk of `folder`.
        folder: An existing folder.
    """

    cores: int
    memory_gb: float
    disk_free_gb: float
    folder: Path

    def rounded(self) -> dict[str, float]:
        """Return the numbers for a report, with one decimal."""
        return {
            "cores": self.cores,
            "memory_gb": round(self.memory_gb, 1),
            "disk_free_gb": round(self.disk_free_gb, 1),
        }

    def problems(self) -> list[Problem]:
        """Return a problem for a small memory and for a small disk."""
        found = []
        if 0 < self.memory_gb < _SMALL_MEMORY_GB:
            message = f"This computer has {self.memory_gb:.1f} GB of memory."
            found.append(Problem("memory_small", message, "Work with a larger --spacing."))
        if self.disk_free_gb < _SMALL_DISK_GB:
            message = f"The disk of {self.folder} has {self.disk_free_gb:.1f} GB free."
            found.append(Problem("disk_small", message, "Free some space."))
        return found


def probe_machine(folder: Path) -> Machine:
    """Return the resources of this computer.

    Args:
        folder: A folder on the disk of interest; it need not exist yet.
    """
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        import psutil

        memory = float(psutil.virtual_memory().total)
    except ImportError:
        memory = 0.0
    return Machine(os.cpu_count() or 1, memory / 1e9, shutil.disk_usage(folder).free / 1e9, folder)


def find_devices() -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the devices on which torch can compute, the best first, and what keeps it from using the others.

    Returns:
        Each device is {"device", "name"}, a graphics card also has "memory_gb" (10^9 bytes).
    """
    import torch

    devices: list[dict[str, Any]] = []
    problems: list[Problem] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            if card_is_usable(index):
                memory = round(card.total_memory / 1e9, 1)
                devices.append({"device": f"cuda:{index}", "name": card.name, "memory_gb": memory})
            else:
                problems.append(_unsupported_card(card.name, (card.major, card.minor)))
    elif driver := driver_cuda_version():
        problem = _unused_driver(driver)
        problems += [] if problem is None else [problem]
    if mps_is_usable():
        devices.append({"device": "mps", "name": "Apple graphics"})
    elif torch.backends.mps.is_available():
        message = f"torch {torch.__version__} does not compute 3D networks on Apple's graphics as the CPU does."
        advice = f"Use --device cpu, or a newer version: {pip_install('torch!=2.9.*')} --upgrade"
        problems.append(Problem("gpu_unsupported", message, advice))
    return [*devices, {"device": "cpu", "name": "CPU"}], problems


def _unsupported_card(name: str, capability: tuple[int, int]) -> Problem:
    """Return the problem of a graphics card for which this torch has no code."""
    import torch

    major, minor = capability
    message = f"torch {torch.__version__} has no code for {name} (compute capability {major}.{minor})."
    wheels = _CUDA_12_8_WHEELS if major >= 10 else _CUDA_12_6_WHEELS
    advice = f"Use --device cpu, or a build that has it: {pip_install('torch')} --force-reinstall {wheels}"
    return Problem("gpu_unsupported", message, advice)


def _unused_driver(driver: str) -> Problem | None:
    """Return why torch uses no graphics card although there is an NVIDIA driver; None for a ROCm build of torch."""
    import torch

    built = torch.version.cuda
    if built is None and torch.version.hip is None:
        message = (
            f"This computer has an NVIDIA graphics card, but torch {torch.__version__} was built for the CPU alone."
        )
        advice = f"{pip_install('torch!=2.9.*')} --force-reinstall {_wheels_for(driver)}"
        return Problem("torch_without_cuda", message, advice)
    if built is None:
        return None
    message = f"torch was built for CUDA {built}, the NVIDIA driver serves CUDA {driver}, and no card answers."
    if version_numbers(driver)[0] < version_numbers(built)[0]:
        return Problem("driver_too_old", message, "Update the NVIDIA driver.")
    return Problem("gpu_hidden", message, "Look at CUDA_VISIBLE_DEVICES, and restart the computer.")


def driver_cuda_version() -> str:
    """Return the CUDA version of the NVIDIA driver as nvidia-smi prints it; an empty text without a driver or card."""
    try:
        process = subprocess.run(
            ["nvidia-smi"], capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    version = re.search(r"CUDA[^:|]*Version:\s*(\d+\.\d+)", process.stdout)
    return version.group(1) if version else ""


def _wheels_for(driver: str) -> str:
    """Return pip's option for the newest builds of torch that run with this CUDA version of the driver."""
    return _CUDA_12_8_WHEELS if version_numbers(driver) >= (12, 8) else _CUDA_12_6_WHEELS

"""Say what this computer can run, what is missing, and the exact command that helps.

  python -m HiEndMAECore.doctor

Answers on a bare Python too. Exit code 0: the main job can run; 5: a required package is missing.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli.options import CommandConfig, option
from .cli.runner import run_command
from .errors import MissingDependencyError
from .io.atomic import write_text
from .reporting.reporter import Reporter
from .runtime.devices import card_is_usable
from .runtime.requirements import OPTIONAL, REQUIRED, fault_of, installed, name_of, pip_install, version_numbers

_CUDA_WHEELS = "--index-url https://download.pytorch.org/whl/{}"
_OLDER, _NEWER = _CUDA_WHEELS.format("cu126"), _CUDA_WHEELS.format("cu128")  # to capability 9.0, and from 7.5 on


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CommandConfig):
    """What to look at beyond the computer itself."""

    output: Path | None = option(None, help="Write the findings here (NAME.json); its disk is looked at too.")


def run(config: DoctorConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Look around and tell; raises `MissingDependencyError` when the main job cannot run here."""
    report = report or Reporter(quiet=True)
    report.info(f"Python {platform.python_version()} on {platform.platform()}: {sys.executable}")
    missing = _packages(report)
    facts = _machine(config.output, report)
    devices = [] if "torch" in missing else _devices(report)
    if config.output is not None:
        found = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name_of(line): installed(line) for line in (*REQUIRED, *OPTIONAL)},
            "missing": missing,
            "can_run": not missing,
            **facts,
            "devices": devices,
            "warnings": report.warnings,
        }
        write_text(config.output, json.dumps(found, indent=1) + "\n")
    if missing:
        wanted = [line for line in REQUIRED if name_of(line) in missing]
        message = f"The main job cannot run here. Not usable: {', '.join(missing)}."
        commands = [pip_install(*wanted)]
        driver = _driver_cuda()
        if sys.platform == "win32" and "torch" in missing and driver:  # there pip's own choice is a CPU build
            commands.insert(0, f"{pip_install(REQUIRED[0])} {_wheels_for(driver)}")
        raise MissingDependencyError("dependency_missing", message, f"Install with: {' and then: '.join(commands)}")
    if config.device != "auto":
        from .runtime.devices import choose_device

        choose_device(config.device)
    report.info(f"This computer can run the main job, on: {', '.join(device['name'] for device in devices)}.")
    return {} if config.output is None else {"report": config.output}


def _packages(report: Reporter) -> list[str]:
    """The required packages that are absent, too old or broken; the rest is told."""
    missing = []
    for line in (*REQUIRED, *OPTIONAL):
        name, version, fault = name_of(line), installed(line), fault_of(line)
        report.info(f"  {name:<12} {version or '-':<16} {fault and f'{fault}; wanted: {line}'}".rstrip())
        if fault and line in OPTIONAL:
            report.warning("extra_missing", f"{name} is {fault}; it is needed {OPTIONAL[line]}.", pip_install(line))
        elif fault == "excluded":  # it runs, only badly
            slow = f"{name} {version} computes 3D convolutions about 4 times slower under autocast."
            report.warning("torch_slow", slow, pip_install(line))
        elif fault:
            missing.append(name)
    return missing


def _machine(output: Path | None, report: Reporter) -> dict[str, float]:
    """Cores, memory and free disk (GB, 10^9 bytes) where `output` goes, or here."""
    place = (output or Path("here")).absolute().parent
    while not place.exists():
        place = place.parent
    cores, memory, disk = os.cpu_count() or 1, _memory() / 1e9, shutil.disk_usage(place).free / 1e9
    facts = {"cores": cores, "memory_gb": round(memory, 1), "disk_free_gb": round(disk, 1)}
    for name, value in facts.items():
        report.metric(name, value)
    report.info(f"{cores} cores, {memory:.1f} GB of memory, {disk:.1f} GB free on the disk of {place}.")
    if 0 < memory < 7.5:
        report.warning("memory_small", f"This computer has {memory:.1f} GB of memory.", "Work with a larger --spacing.")
    if disk < 5:
        report.warning("disk_small", f"The disk of {place} has {disk:.1f} GB free.", "Free some space.")
    return facts


def _memory() -> float:
    """Bytes of memory in this computer; 0 when it does not tell."""
    if sys.platform == "win32":
        import ctypes

        kilobytes = ctypes.c_ulonglong()
        message = ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
        return kilobytes.value * 1024.0 if message else 0.0
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def _devices(report: Reporter) -> list[dict[str, Any]]:
    """Where torch can compute here, the best first; warns where the hardware could do more than torch uses."""
    import torch

    devices: list[dict[str, Any]] = []
    driver, built, version = _driver_cuda(), torch.version.cuda, torch.__version__
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            if not card_is_usable(index):
                message = f"torch {version} has no code for {card.name} (compute capability {card.major}.{card.minor})."
                wheels = _NEWER if card.major >= 10 else _OLDER
                advice = f"Use --device cpu, or a build that has it: {pip_install('torch')} --force-reinstall {wheels}"
                report.warning("gpu_unsupported", message, advice)
                continue
            memory = round(card.total_memory / 1e9, 1)
            devices.append({"device": f"cuda:{index}", "name": card.name, "memory_gb": memory})
            report.metric("gpu_memory_gb", memory, device=f"cuda:{index}", gpu=card.name)
    elif driver and built is None and torch.version.hip is None:
        message = f"This computer has an NVIDIA graphics card, but torch {version} was built for the CPU alone."
        advice = f"{pip_install('torch!=2.9.*')} --force-reinstall {_wheels_for(driver)}"
        report.warning("torch_without_cuda", message, advice)
    elif driver and built is not None:
        message = f"torch was built for CUDA {built}, the NVIDIA driver serves CUDA {driver}, and no card answers."
        if version_numbers(driver)[0] < version_numbers(built)[0]:
            report.warning("driver_too_old", message, "Update the NVIDIA driver.")
        else:
            report.warning("gpu_hidden", message, "Look at CUDA_VISIBLE_DEVICES, and restart the computer.")
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple graphics"})
    return [*devices, {"device": "cpu", "name": "CPU"}]


def _driver_cuda() -> str:
    """The CUDA version that the NVIDIA driver serves, as nvidia-smi tells it; '' without a driver or card."""
    try:
        asked = subprocess.run(["nvidia-smi"], capture_output=True, text=True, errors="replace", timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    version = re.search(r"CUDA[^:|]*Version:\s*(\d+\.\d+)", asked.stdout)
    return version.group(1) if version else ""


def _wheels_for(driver: str) -> str:
    """pip's option for torch's newest builds that a driver serves which speaks this version of CUDA."""
    return _NEWER if version_numbers(driver) >= (12, 8) else _OLDER


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return run_command(DoctorConfig, run, argv, command="doctor", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())

"""Report what this computer can run, what is missing, and the exact command that installs it.

  python -m HiEndMAECore.doctor

It also measures the training speed, and runs on a bare Python. Exit code 0: the main job can run; 5: a package is missing.
"""

from __future__ import annotations

import json
import platform
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
from .runtime.devices import choose_device
from .runtime.diagnostics import Machine, PackageStatus, check_packages, find_devices, install_advice, probe_machine


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(CommandConfig):
    """The options of `doctor`."""

    output: Path | None = option(None, help="Write the findings here (NAME.json); its disk is checked too.")


def run(config: DoctorConfig, report: Reporter | None = None) -> dict[str, Any]:
    """Check packages, machine and devices, and report them.

    Args:
        config: The options.
        report: Receives the findings as sentences, metrics and warnings.

    Returns:
        The path of the report, if one was asked for.

    Raises:
        MissingDependencyError: The main job cannot run here; the advice has the command that installs what is missing.
        UsageError: The device that `config` names cannot be used.
    """
    report = report or Reporter(quiet=True)
    report.info(f"Python {platform.python_version()} on {platform.platform()}: {sys.executable}")
    packages = check_packages()
    _report_packages(packages, report)
    blocking = [package for package in packages if package.blocks]
    machine = probe_machine((config.output or Path("file")).absolute().parent)
    _report_machine(machine, report)
    devices = [] if any(package.name == "torch" for package in blocking) else _report_devices(report)
    if blocking:
        report.info("The training speed is not measured, because a required package cannot be used.")
    else:
        from .training.speed_probe import report_training_speed

        report_training_speed(devices, report, only=config.device)
    if config.output is not None:
        findings = {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {package.name: package.version for package in packages},
            "missing": [package.name for package in blocking],
            "can_run": not blocking,
            **machine.rounded(),
            "devices": devices,
            "warnings": report.warnings,
        }
        write_text(config.output, json.dumps(findings, indent=1) + "\n")
    if blocking:
        names = ", ".join(package.name for package in blocking)
        message = f"The main job cannot run here. Not usable: {names}."
        raise MissingDependencyError("dependency_missing", message, install_advice(blocking))
    if config.device != "auto":
        choose_device(config.device)
    report.info(f"This computer can run the main job, on: {', '.join(device['name'] for device in devices)}.")
    return {} if config.output is None else {"report": config.output}


def _report_packages(packages: Sequence[PackageStatus], report: Reporter) -> None:
    """Report the version and the fault of each package."""
    for package in packages:
        fault = package.fault and f"{package.fault}; wanted: {package.requirement}"
        report.info(f"  {package.name:<12} {package.version or '-':<16} {fault}".rstrip())
        if package.problem is not None:
            report.warning(*package.problem)


def _report_machine(machine: Machine, report: Reporter) -> None:
    """Report cores, memory and disk, as metrics and as a sentence."""
    for name, value in machine.rounded().items():
        report.metric(name, value)
    memory = f"{machine.memory_gb:.1f} GB of memory" if machine.memory_gb else "an unknown amount of memory"
    report.info(f"{machine.cores} cores, {memory}, {machine.disk_free_gb:.1f} GB free on the disk of {machine.folder}.")
    for problem in machine.problems():
        report.warning(*problem)


def _report_devices(report: Reporter) -> list[dict[str, Any]]:
    """Report and return the devices on which torch can compute."""
    devices, problems = find_devices()
    for device in devices:
        if "memory_gb" in device:
            report.metric("gpu_memory_gb", device["memory_gb"], device=device["device"], gpu=device["name"])
    for problem in problems:
        report.warning(*problem)
    return devices


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    return run_command(DoctorConfig, run, argv, command="doctor", description=__doc__ or "")


if __name__ == "__main__":
    raise SystemExit(main())

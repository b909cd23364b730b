"""Install the engine's packages into Slicer's Python: after one question, on the main thread, never at import.

torch is installed by the PyTorch extension, which chooses its build; the rest by `slicer.packaging`, or on older versions
by `slicer.util.pip_install`. Packages that Slicer ships are pinned to the installed version, so that pip can neither replace
nor upgrade them.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from slicer.i18n import tr as _

from HiEndMAECore.errors import MissingDependencyError
from HiEndMAECore.runtime.requirements import REQUIRED, installed, name_of, outside

SHIPPED_WITH_SLICER = ("numpy", "SimpleITK", "vtk", "scipy", "requests", "pydicom", "pillow", "torch", "torchvision")


def missing_packages() -> list[str]:
    """Return the requirements that Slicer's Python does not meet, by package metadata and without importing anything."""
    missing = []
    for line in REQUIRED:
        version = installed(line)
        if version is None or outside(version, line):
            missing.append(line)
    return missing


def question(lines: list[str]) -> str:
    """Return the question that the user answers before anything is downloaded."""
    names = ", ".join(name_of(line) for line in lines)
    message = _("HiEndMAE needs these Python packages: {names}.").format(names=names)
    if any(name_of(line) == "torch" for line in lines):
        message += " " + _("PyTorch alone is 0.2 to 3 GB to download; this takes some minutes.")
    return f"{message}\n\n" + _("Install them into this Slicer now?")


def offline_requirements() -> list[str]:
    """Return the requirements of an offline package: all that Slicer does not ship, and torch.

    Without a network the PyTorch extension cannot install torch.
    """
    return [line for line in REQUIRED if name_of(line) == "torch" or name_of(line) not in SHIPPED_WITH_SLICER]


def offline_pins() -> list[str]:
    """Return the pins for downloading packages.

    pip has to find these versions: packages that Slicer builds itself are left out, and so are local version labels.
    """
    built_by_slicer = ("SimpleITK", "vtk")
    return [pin.partition("+")[0] for pin in shipped_pins() if pin.partition("==")[0] not in built_by_slicer]


def restart_needed(lines: list[str]) -> bool:
    """Return whether Slicer has already loaded an older version of one of these packages."""
    return any(name_of(line) in sys.modules for line in lines)


def install(lines: list[str]) -> bool:
    """Ask the user, then install the requirements; return False if the user declines.

    Raises:
        MissingDependencyError: torch is required and the PyTorch extension is not installed.
        Exception: Anything that pip's wrapper raises; the caller shows it.
    """
    if not lines or not slicer.util.confirmOkCancelDisplay(question(lines), windowTitle="HiEndMAE"):
        return False
    torch = [line for line in lines if name_of(line) == "torch"]
    if torch:
        _install_torch(torch[0])
    others = [line for line in lines if line not in torch and name_of(line) not in SHIPPED_WITH_SLICER]
    if others:
        _install_with_pip(others)
    return True


def _install_torch(line: str) -> None:
    """Install torch by the PyTorch extension."""
    if not hasattr(slicer.modules, "pytorchutils"):
        raise MissingDependencyError(
            "pytorch_extension_missing",
            _("The extension 'PyTorch' is not installed."),
            _("Install it in the Extensions Manager, restart Slicer, and press Install again."),
        )
    import PyTorchUtils

    requirement = line.removeprefix("torch")
    logic = PyTorchUtils.PyTorchUtilsLogic()
    if logic.installTorch(askConfirmation=False, torchVersionRequirement=requirement) is None:
        advice = _("Open the module 'PyTorch Util', and look there for the reason.")
        raise MissingDependencyError("torch_not_installed", _("PyTorch could not be installed."), advice)


def _install_with_pip(lines: list[str]) -> None:
    """Install the requirements by pip, with the packages that Slicer ships pinned."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(shipped_pins()) + "\n", encoding="utf-8")
        packaging = _packaging()
        if packaging is not None:  # it shows its progress in a dialog; `pip_ensure` would ask a second time
            packaging.pip_install(lines, constraints=str(constraints), requester="HiEndMAE")
        else:
            slicer.util.pip_install(["-c", str(constraints), *lines])


def _packaging() -> Any:
    """Return Slicer's module for installing packages, under its present or former name; None before Slicer 5.11."""
    for name in ("slicer.packaging", "slicer.pydeps"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def shipped_pins() -> list[str]:
    """Return `name==version` of every installed package that Slicer ships; with these constraints pip keeps them."""
    lines = []
    for name in SHIPPED_WITH_SLICER:
        try:
            lines.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return lines

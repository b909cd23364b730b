"""Getting the engine's packages into Slicer's Python: asked once, on the main thread, never at import.

torch comes through the PyTorch extension, which knows graphics cards; the rest through `slicer.packaging`, or on
older versions through `slicer.util.pip_install`. Packages that Slicer ships are pinned to the version at hand, so that
pip can neither replace nor upgrade them.
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
from HiEndMAECore.requirements import REQUIRED, installed, name_of, outside

SHIPPED = ("numpy", "SimpleITK", "vtk", "scipy", "requests", "pydicom", "pillow", "torch", "torchvision")


def missing() -> list[str]:
    """The requirements that Slicer's Python does not meet, by their metadata: nothing is imported."""
    lacking = []
    for line in REQUIRED:
        version = installed(line)
        if version is None or outside(version, line):
            lacking.append(line)
    return lacking


def question(lines: list[str]) -> str:
    """What the user is asked before anything is downloaded."""
    names = ", ".join(name_of(line) for line in lines)
    told = _("HiEndMAE needs these Python packages: {names}.").format(names=names)
    if any(name_of(line) == "torch" for line in lines):
        told += " " + _("PyTorch alone is 0.2 to 3 GB to download; this takes some minutes.")
    return f"{told}\n\n" + _("Install them into this Slicer now?")


def kit_packages() -> list[str]:
    """What an offline kit has to hold: all that Slicer does not ship. Without a network no extension fetches PyTorch."""
    return [line for line in REQUIRED if name_of(line) == "torch" or name_of(line) not in SHIPPED]


def kit_pins() -> list[str]:
    """As `pinned`, without what Slicer builds for itself and with the public part of versions: pip has to find them."""
    own = ("SimpleITK", "vtk")
    return [pin.partition("+")[0] for pin in pinned() if pin.partition("==")[0] not in own]


def restart_wanted(lines: list[str]) -> bool:
    """Is any of these packages loaded in Slicer already, in the version that was there before?"""
    return any(name_of(line) in sys.modules for line in lines)


def install(lines: list[str]) -> bool:
    """Ask, then install the requirement `lines`; False when the user says no.

    Raises `MissingDependencyError` when PyTorch is wanted and its extension is not there, and whatever pip's wrapper
    raises: the caller shows it.
    """
    if not lines or not slicer.util.confirmOkCancelDisplay(question(lines), windowTitle="HiEndMAE"):
        return False
    torch = [line for line in lines if name_of(line) == "torch"]
    if torch:
        _install_torch(torch[0])
    rest = [line for line in lines if line not in torch]
    ours = [line for line in rest if name_of(line) not in SHIPPED]
    if ours:
        _install_rest(ours)
    return True


def _install_torch(line: str) -> None:
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


def _install_rest(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text("\n".join(pinned()) + "\n", encoding="utf-8")
        packaging = _packaging()
        if packaging is not None:  # a dialog shows how far it is; `pip_ensure` would ask a second time
            packaging.pip_install(lines, constraints=str(pins), requester="HiEndMAE")
        else:
            slicer.util.pip_install(["-c", str(pins), *lines])


def _packaging() -> Any:
    """Slicer's own module for this, under either of the names that it has had; None before 5.11."""
    for name in ("slicer.packaging", "slicer.pydeps"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def pinned() -> list[str]:
    """`name==version` of every shipped package at hand: constraints under which pip leaves them alone."""
    lines = []
    for name in SHIPPED:
        try:
            lines.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return lines

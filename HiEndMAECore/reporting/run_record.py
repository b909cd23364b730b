"""The record of a run, `config.json`: the config that replays it, and the versions of what computed it."""

from __future__ import annotations

import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from HiEndMAECore import __version__
from HiEndMAECore.io.atomic import write_text

_RECORDED_PACKAGES = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "safetensors", "openvino")


def versions() -> dict[str, str]:
    """Return the versions of Python, of HiEndMAE and of the packages on which numerical results depend."""
    found = {"python": platform.python_version(), "HiEndMAECore": __version__}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_record(folder: Path, config: dict[str, Any]) -> None:
    """Write `config.json`.

    Args:
        folder: The run directory.
        config: The config of the command, as `cli.options.to_json` returns it.
    """
    record = {"config": config, "versions": versions(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_text(folder / "config.json", json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the config in the `config.json` of a run directory, None when there is none that can be read."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""What a run leaves to be read later: its config, its versions, and one JSON line a step."""

from __future__ import annotations

import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from HiEndMAECore import __version__
from HiEndMAECore.io.atomic import write_text

_TOLD = ("torch", "monai", "numpy", "nibabel", "SimpleITK", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python, HiEndMAE and the packages that decide about numbers."""
    found = {"python": platform.python_version(), "HiEndMAECore": __version__}
    for package in _TOLD:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_record(folder: Path, config: dict[str, Any]) -> None:
    """`config.json`: the config that replays this run, and what it ran with."""
    record = {"config": config, "versions": versions(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    write_text(folder / "config.json", json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The config of the run in `folder`, None when there is none."""
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""The packages that the engine needs, and whether what is installed will do. Standard library alone.

As in pyproject.toml (a test compares them): inside Slicer the engine is not installed and has no metadata to read.
"""

from __future__ import annotations

import importlib
import re
import sys
from importlib import metadata

REQUIRED = (
    "torch>=2.2,!=2.9.*",
    "monai>=1.3",
    "nibabel>=5.0",
    "numpy>=1.24",
    "safetensors>=0.4.3",
    "SimpleITK>=2.3",
    "scipy>=1.10",
    "psutil>=5.9",
)
OPTIONAL = {
    "matplotlib>=3.7": "to draw pictures and curves",
    "highdicom>=0.24": "to write DICOM segmentations",
    "blosc2>=3.0": "to keep the scans that pretraining reads compressed",
    "tensorboard>=2.12": "to write TensorBoard's files of a pretraining",
    "einops>=0.6": "to build the network swinunetr",
}


def name_of(line: str) -> str:
    """'torch' of 'torch>=2.2,!=2.9.*'."""
    return re.split(r"[<>=!]", line)[0]


def pip_install(*lines: str) -> str:
    """The command that installs `lines` for this Python."""
    return " ".join([f'"{sys.executable}" -m pip install', *(f'"{line}"' for line in lines)])


def installed(line: str) -> str | None:
    """The installed version of the package of a requirement `line`, or None."""
    try:
        return metadata.version(name_of(line))
    except metadata.PackageNotFoundError:
        return None


def fault_of(line: str) -> str:
    """What is wrong with the installed package: '' (nothing), 'absent', 'too old', 'excluded', or 'broken (why)'."""
    version = installed(line)
    fault = "absent" if version is None else outside(version, line)
    if fault:
        return fault
    try:
        importlib.import_module(name_of(line))
    except Exception as error:  # a broken installation raises whatever it likes: OSError for a missing DLL, say
        return f"broken ({type(error).__name__}: {error})"
    return ""


def outside(version: str, line: str) -> str:
    """How `version` falls outside the `>=` and `!=X.*` of a requirement `line`: 'too old', 'excluded' or ''."""
    numbers = version_numbers(version)
    for sign, bound in re.findall(r"(>=|!=)([\d.]+)", line):
        limit = version_numbers(bound)
        if sign == ">=" and numbers < limit:
            return "too old"
        if sign == "!=" and numbers[: len(limit)] == limit:
            return "excluded"
    return ""


def version_numbers(version: str) -> tuple[int, ...]:
    """(2, 9, 0) of '2.9.0+cu126'."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])

"""The required and optional packages, and whether the installed versions satisfy them. Standard library alone.

A test compares the lists with pyproject.toml. They stand here too, because inside Slicer the engine is not installed and
has no metadata to read.
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
    "filelock>=3.12",
)
OPTIONAL = {
    "matplotlib>=3.7": "to draw pictures and curves",
    "highdicom>=0.24": "to write DICOM segmentations",
    "blosc2>=3.0": "to keep the scans that pretraining reads compressed",
    "tensorboard>=2.12": "to write TensorBoard's files of a pretraining",
    "einops>=0.6": "to build the network swinunetr",
}


def name_of(requirement: str) -> str:
    """Return the name of the package of a requirement: 'torch' for 'torch>=2.2,!=2.9.*'."""
    return re.split(r"[<>=!]", requirement)[0]


def pip_install(*requirements: str) -> str:
    """Return the command that installs requirements for this Python."""
    return " ".join([f'"{sys.executable}" -m pip install', *(f'"{requirement}"' for requirement in requirements)])


def installed(requirement: str) -> str | None:
    """Return the installed version of the package of a requirement, or None."""
    try:
        return metadata.version(name_of(requirement))
    except metadata.PackageNotFoundError:
        return None


def fault_of(requirement: str) -> str:
    """Return what is wrong with the installed package: '' (nothing), 'absent', 'too old', 'excluded' or 'broken (why)'."""
    version = installed(requirement)
    fault = "absent" if version is None else outside(version, requirement)
    if fault:
        return fault
    try:
        importlib.import_module(name_of(requirement))
    except Exception as error:  # a broken installation raises anything, for example OSError for a missing DLL
        return f"broken ({type(error).__name__}: {error})"
    return ""


def outside(version: str, requirement: str) -> str:
    """Return how a version violates a requirement.

    Args:
        version: An installed version, such as "2.9.0+cu126".
        requirement: A requirement with `>=X` and `!=X.*`.

    Returns:
        'too old', 'excluded', or '' when the version satisfies the requirement.
    """
    numbers = version_numbers(version)
    for sign, bound in re.findall(r"(>=|!=)([\d.]+)", requirement):
        limit = version_numbers(bound)
        if sign == ">=" and numbers < limit:
            return "too old"
        if sign == "!=" and numbers[: len(limit)] == limit:
            return "excluded"
    return ""


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version: (2, 9, 0) for '2.9.0+cu126'."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])

"""Scans and stores for the tests of the store."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from HiEndMAECore.data import crop_store
from HiEndMAECore.prepare import PrepareConfig
from HiEndMAECore.prepare import run as run_prepare

SHAPE = (9, 14, 11)
PREPARATION = {"spacing": [1.5, 1.5, 1.5], "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}}


def scan_of(seed: int, shape: tuple[int, int, int] = (30, 26, 22)) -> np.ndarray:
    """A noisy body in air, whole HU."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = x**2 + y**2 < 0.6 + 0.1 * np.sin(seed + 5 * z)
    return np.where(body, 40 + 60 * np.sin(seed + 4 * x), -1000).astype(np.int16) + rng.integers(
        -20, 20, shape, np.int16
    )


def write(path: Path, array: np.ndarray, *, flipped: bool = False, spacing: float = 4.0) -> Path:
    """As any format; `flipped`: stored along the other direction of the first axis, the same patient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing] * 3 + [1.0])
    if flipped:
        array, affine[0, 0], affine[0, 3] = array[::-1], -spacing, spacing * (len(array) - 1)
    if path.name.endswith((".nii.gz", ".nii")):
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    lps = np.diag([-1, -1, 1, 1]) @ affine
    image = sitk.GetImageFromArray(array.T.copy())
    image.SetSpacing([spacing] * 3)
    image.SetDirection((lps[:3, :3] / spacing).ravel())
    image.SetOrigin(lps[:3, 3])
    sitk.WriteImage(image, str(path), True)
    return path


def prepared(output: Path, *inputs: Path, **options: object) -> dict:
    config = PrepareConfig(input=inputs, output=output, spacing=(5.0, 5.0, 5.0), **{"workers": 0, **options})  # type: ignore[arg-type]
    run_prepare(config)
    return crop_store.read_manifest(output)


def names(manifest: dict) -> list[str]:
    return [scan["name"] for scan in manifest["scans"]]


def reasons(manifest: dict) -> dict[str, str]:
    return {row["name"]: row["code"] for row in manifest["left_out"]}

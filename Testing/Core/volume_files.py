"""Scans on disk for the tests of readers and writers."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.readers import read_volume

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.9, 1.1, 2.5]), [12.5, -40.25, 7.0]
)


SHEARED = OBLIQUE @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


SHAPE = (7, 6, 5)


def scan(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 300, shape).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def refusal(code: str, path: Path, reader=read_volume, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        reader(path, **options)
    assert caught.value.code == code, str(caught.value)
    assert path.name in caught.value.message
    assert caught.value.advice
    return caught.value


def stack(count: int, step: tuple[float, float, float] = (0, 0, 2.5)) -> np.ndarray:
    return np.array([-20.0, -10.0, 30.0]) + np.arange(count)[:, None] * np.array(step)

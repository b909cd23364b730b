"""The scripts that register a labelled scan and propagate its labels, on a copy whose truth is known."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bare_python import REPOSITORY

from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.evaluation.metrics import score_case
from HiEndMAECore.io.readers import read_label_map
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.io.writers import write_label_map, write_scalar_map

NEEDED = {"registration": "torch", "elastix": "itk", "convexadam": "convexAdam"}


@pytest.mark.parametrize("name", NEEDED)
def test_propagated_labels_lie_on_a_displaced_and_flipped_copy(name: str, tmp_path: Path) -> None:
    """The copy is stored with other axes, and lies 24 mm to the left, 16 mm to the back and 8 mm higher."""
    if importlib.util.find_spec(NEEDED[name]) is None:
        pytest.skip(f"{NEEDED[name]} is not installed (the extra `bench`)")
    scan, labels = make_patient(1, shape=(64, 56, 56), spacing=(5.0, 5.0, 5.0))
    flip = np.eye(4)
    flip[:2, :2], flip[0, 3], flip[1, 3] = -np.eye(2), scan.shape[0] - 1, scan.shape[1] - 1
    affine = scan.affine @ flip
    affine[:3, 3] += (-24.0, -16.0, 8.0)
    geometry = Geometry(scan.shape, affine)
    write_scalar_map(tmp_path / "labelled_0000.nii.gz", scan.array[0], scan.geometry)
    write_label_map(tmp_path / "labels.nii.gz", labels.array[0], labels.geometry)
    write_scalar_map(tmp_path / "copy_0000.nii.gz", scan.array[0, ::-1, ::-1], geometry)
    words = [sys.executable, REPOSITORY / "Testing/Benchmarks" / f"propagate_{name}.py", "--clean",
             "--image", tmp_path / "labelled_0000.nii.gz", "--label", tmp_path / "labels.nii.gz",
             "--targets", tmp_path / "copy_0000.nii.gz", "--output", tmp_path / "out"]  # fmt: skip
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    found = read_label_map(tmp_path / "out" / "copy.nii.gz", allow_empty=True)
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)
    scores = score_case(found.array[0], labels.array[0, ::-1, ::-1], affine=affine)
    assert np.mean([score.dice for score in scores.values() if score.dice is not None]) > 0.85

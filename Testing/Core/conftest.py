"""Fixtures that several tests of the engine share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_runs import finetune_arguments, run

from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.io.writers import write_label_map, write_scalar_map


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real scans, or skip the test. The repository has no real scans."""
    folder = os.environ.get("HIENDMAE_DATA")
    if not folder:
        pytest.skip("HIENDMAE_DATA does not name a folder of real scans")
    if not Path(folder).is_dir():
        pytest.skip(f"HIENDMAE_DATA names {folder}, which is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three coarse digital patients, two of them labelled, under a path with a space and an umlaut."""
    folder = tmp_path_factory.mktemp("Büro 1")
    for seed in (1, 2, 3):
        scan, labels = make_patient(seed, shape=(42, 36, 36), spacing=(8.0, 8.0, 8.0))
        write_scalar_map(folder / "scans" / f"p{seed}_0000.nii.gz", scan.array[0], scan.geometry)
        if seed < 3:
            write_label_map(folder / "labels" / f"p{seed}.nii.gz", labels.array[0], labels.geometry)
    return folder


@pytest.fixture(scope="session")
def model(patients: Path) -> Path:
    """Train a model for three steps, without an atlas: its results are wrong, but it is complete.

    `inference/test_segmentation_methods.py` has the tests of models with an atlas, on smaller patients.
    """
    path = patients / "model"
    run("finetune", *finetune_arguments(patients, path, "--steps", 3, "--no-atlas"))
    return path

"""Digital patients reduced to 120 mm, whose registration takes a second, and their models and atlases."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.io.writers import write_label_map, write_scalar_map
from HiEndMAECore.preprocessing.pipeline import (
    PreprocessedScan,
    PreprocessingPlan,
    preprocess,
    preprocess_labels,
)
from HiEndMAECore.registration.atlas import Atlas, build_atlas
from HiEndMAECore.registration.features import RegistrationImage
from HiEndMAECore.registration.grids import Grid

SHAPE, SPACING = (42, 36, 36), (3.0, 3.0, 3.0)
PLAN = PreprocessingPlan(SPACING)


@functools.cache
def small_patient(seed: int) -> tuple[Volume, Volume]:
    """Return the CT of a digital patient and its label map, as if the patient were 8/3 times smaller."""
    scan, labels = make_patient(seed, shape=SHAPE, spacing=(8.0, 8.0, 8.0))
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(SHAPE, SPACING)]
    return with_affine(scan, affine), with_affine(labels, affine)


def small_head() -> Volume:
    """Return a CT of a simple head in the size of the small patients."""
    affine = small_patient(1)[0].affine
    points = Grid(SHAPE, affine).positions(torch.device("cpu")).numpy()
    radius = np.linalg.norm(points / np.array([28.0, 36.0, 34.0])[:, None, None, None], axis=0)
    array = np.where(radius < 1, 40.0, -1000.0)
    array[(radius < 1) & (radius > 0.9)] = 900.0
    array[radius < 0.2] = 5.0
    return Volume(array[None].astype(np.float32), Geometry(SHAPE, affine), name="head")


def with_affine(volume: Volume, affine: np.ndarray) -> Volume:
    """Return a volume whose voxels lie elsewhere."""
    return Volume(volume.array, Geometry(volume.shape, affine), name=volume.name)


def prepared(volume: Volume) -> PreprocessedScan:
    """Return a scan on the network's grid."""
    return preprocess(volume, PLAN)


def atlas_of(scan: Volume, labels: Volume | None = None) -> Atlas:
    """Return the atlas of a scan, without any structure if no labels are given."""
    image = prepared(scan)
    grid = Grid(image.shape, image.affine)
    classes = np.zeros(image.shape, np.int16) if labels is None else preprocess_labels(labels, image).astype(np.int16)
    registration_image = RegistrationImage(torch.from_numpy(image.array[0]), image.affine)
    return build_atlas(registration_image, torch.from_numpy(classes), grid, name="case", modality="ct")


def write_pair(folder: Path, name: str, scan: Volume, labels: Volume) -> tuple[Path, Path]:
    """Write a scan and its label map, and return their paths."""
    paths = folder / "scans" / f"{name}.nii.gz", folder / "labels" / f"{name}.nii.gz"
    write_scalar_map(paths[0], scan.array[0], scan.geometry)
    write_label_map(paths[1], labels.array[0], labels.geometry)
    return paths

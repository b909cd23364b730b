"""Propagate labels by the engine's own registration (`HiEndMAECore.registration`). Options: see `propagation`."""

from __future__ import annotations

import argparse

import numpy as np
import propagation
import torch

from HiEndMAECore.io.volume import Volume
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.preprocessing.pipeline import PreprocessingPlan, preprocess
from HiEndMAECore.registration.features import RegistrationImage
from HiEndMAECore.registration.grids import Grid
from HiEndMAECore.registration.registration import register
from HiEndMAECore.reporting.reporter import Reporter

SPACING_LIMITS_MM = (1.0, 2.0)  # of the preprocessed scans, between which they keep their finest spacing


def propagate(scan: Volume, labels: Volume, target: Volume, options: argparse.Namespace) -> np.ndarray:
    """Return the labels of the scan on the target's grid."""
    torch.set_num_threads(options.threads)
    moving, fixed = (_prepare(volume, options.modality) for volume in (scan, target))
    with Reporter(quiet=True) as report:
        result = register(moving, fixed, modality=options.modality, report=report)
    source, goal = (Grid(volume.shape, volume.geometry.affine) for volume in (labels, target))
    warped = result.transform.warp_labels(torch.from_numpy(labels.array[0].astype(np.int32)), source, goal)
    return warped.numpy()


def _prepare(volume: Volume, modality: str) -> RegistrationImage:
    """Return a scan as the registration wants it."""
    first = Volume(volume.array[:1], volume.geometry, volume.name)
    normalization = IntensityNormalization() if modality == "ct" else IntensityNormalization.percentiles()
    edge = float(np.clip(min(volume.spacing), *SPACING_LIMITS_MM))
    scan = preprocess(first, PreprocessingPlan((edge, edge, edge), normalization))
    return RegistrationImage(torch.from_numpy(scan.array[0]), scan.affine)


if __name__ == "__main__":
    propagation.run(propagate, propagation.__doc__)

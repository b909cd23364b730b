"""Propagate labels by elastix (needs itk-elastix, the extra `bench`). Options: see `propagation`.

The settings are the defaults of elastix for rigid, affine and B-spline registration (mutual information), except for control
points 20 mm apart (better than 10 mm on two `tune` cases of OpenKBP, and three times as fast), starting where the centers of
mass of the bodies coincide. Small scans have control points closer together.
"""

from __future__ import annotations

import argparse

import itk
import numpy as np
import propagation

from HiEndMAECore.io.volume import Volume

CONTROL_POINTS_MM = 20.0
SMALL_EXTENT_MM = 120.0  # scans with a smaller middle extent get a finer grid, in proportion
LEVELS = 4
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])


def propagate(scan: Volume, labels: Volume, target: Volume, options: argparse.Namespace) -> np.ndarray:
    """Return the labels of the scan on the target's grid."""
    fixed, moving = (
        _as_itk(propagation.without_air(volume, options.modality), np.float32) for volume in (target, scan)
    )
    _, found = itk.elastix_registration_method(
        fixed,
        moving,
        parameter_object=_stages(target, options.seed),
        log_to_console=False,
        number_of_threads=options.threads,
    )
    for index in range(found.GetNumberOfParameterMaps()):
        found.SetParameter(index, "ResampleInterpolator", "FinalNearestNeighborInterpolator")
    warped = itk.transformix_filter(_as_itk(labels, np.float32), found)
    return np.rint(itk.array_from_image(warped)).astype(np.int32).T


def _stages(target: Volume, seed: int) -> itk.ParameterObject:
    """Return the parameters of the rigid, the affine and the B-spline registration."""
    middle = sorted(size * step for size, step in zip(target.shape, target.spacing))[1]
    spacing = CONTROL_POINTS_MM * min(1.0, middle / SMALL_EXTENT_MM)
    levels = max(1, min(LEVELS, int(np.log2(min(target.shape) / 4))))  # a thin stack cannot be halved four times
    stages = itk.ParameterObject.New()
    for stage in ("rigid", "affine", "bspline"):
        settings = stages.GetDefaultParameterMap(stage, levels, spacing)
        settings["AutomaticTransformInitialization"] = ["true" if stage == "rigid" else "false"]
        settings["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
        settings["RandomSeed"] = [str(seed + 1)]
        stages.AddParameterMap(settings)
    return stages


def _as_itk(volume: Volume, kind: type) -> itk.Image:
    """Return the first channel as an image of ITK, which counts positions along left, posterior and superior."""
    image = itk.image_from_array(np.ascontiguousarray(volume.array[0].T.astype(kind)))
    spacing = np.asarray(volume.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((RAS_TO_LPS @ volume.affine[:3, 3]).tolist())
    image.SetDirection(itk.matrix_from_array(RAS_TO_LPS @ volume.affine[:3, :3] / spacing))
    return image


if __name__ == "__main__":
    propagation.run(propagate, propagation.__doc__)

"""Small predictors, models, scans and a reference sliding window for the tests of inference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from dicom_series import write_series

from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.inference.sliding_window import BACKGROUND_LOGIT, gaussian_importance_map, tile_positions
from HiEndMAECore.io.readers import read_label_map
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.networks import UNETR
from HiEndMAECore.segment import SegmentConfig

CPU = torch.device("cpu")
GB = 10**9
ARGUMENTS: dict[str, Any] = {
    "image_size": (16, 16, 16), "patch_size": 8, "in_channels": 1, "classes": 3, "encoder_dim": 24, "encoder_depth": 4,
    "encoder_heads": 2, "feature_size": 4,
}  # fmt: skip


def make_predictor(**changes: Any) -> Predictor:
    """Return an untrained predictor on the CPU in float32, with label values 3, 300, 301, …"""
    torch.manual_seed(0)
    arguments = {**ARGUMENTS, **changes}
    description = ModelDescription(
        kind="segmentation",
        name="test",
        architecture={"network": "UNETR", "variant": "", "arguments": arguments},
        channels=[f"c{index}" for index in range(arguments["in_channels"])],
        preparation={"spacing": [2.0, 2.0, 2.0], "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}},
        labels=[
            {"value": value, "name": f"structure {value}"}
            for value in [3, 300, *range(301, 400)][: arguments["classes"] - 1]
        ],
    )
    return Predictor(UNETR(**arguments), description, CPU, exact=True)


def make_noise_volume(shape: tuple[int, int, int], spacing: float = 2.0, channels: int = 1) -> Volume:
    """Return a scan of noise in HU."""
    rng = np.random.default_rng(0)
    array = rng.normal(40, 60, (channels, *shape)).astype(np.float32)
    return Volume(array, Geometry(shape, np.diag([spacing, spacing, spacing, 1.0])), name="noise")


def reference_logits(predictor: Predictor, array: np.ndarray) -> np.ndarray:
    """Return logits (K, H, W, D) of a textbook sliding window: every tile through the network, float64 sums over the scan.

    A tile that is zero everywhere is background.
    """
    padding = [max(0, edge - n) for edge, n in zip(predictor.tile, array.shape[1:])]
    padded = np.pad(array, [(0, 0), *[(total // 2, total - total // 2) for total in padding]])
    sums, weights = np.zeros((len(predictor.structures) + 1, *padded.shape[1:])), np.zeros(padded.shape[1:])
    importance = gaussian_importance_map(predictor.tile, CPU).numpy()
    for start in tile_positions(padded.shape[1:], predictor.tile):
        region = tuple(slice(first, first + edge) for first, edge in zip(start, predictor.tile))
        tile = padded[(slice(None), *region)]
        with torch.no_grad():
            logits = predictor.network(torch.from_numpy(tile)[None])[0].numpy()
        if not tile.any():
            logits = np.zeros_like(logits)
            logits[0] = BACKGROUND_LOGIT
        sums[(slice(None), *region)] += logits * importance
        weights[region] += importance
    valid = tuple(slice(total // 2, total // 2 + n) for total, n in zip(padding, array.shape[1:]))
    return (sums / weights)[(slice(None), *valid)]


def assert_same_labels(classes: np.ndarray, reference: np.ndarray) -> None:
    """Assert that `classes` are the most probable ones of logits (K, H, W, D), except where two are within 1e-4."""
    second, first = np.sort(reference, axis=0)[-2:]
    differ = classes != reference.argmax(0)
    assert not (differ & (first - second > 1e-4)).any()


def write_untrained_model(path: Path) -> Path:
    """Write an untrained model whose card names one training scan with voxels of 4 mm, and return its path."""
    torch.manual_seed(0)
    fingerprint = {"spacing_mm": [4, 4, 4], "extent_mm": [80, 80, 80], "intensities": [[0.4, 0.5, 0.6]]}
    description = ModelDescription(
        kind="segmentation", name="test", architecture={"network": "UNETR", "variant": "", "arguments": ARGUMENTS},
        channels=["ct"], labels=[{"value": 3, "name": "liver"}, {"value": 9, "name": "spleen"}],
        preparation={"spacing": [4.0] * 3, "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}},
        training={"teaching": [fingerprint]},
    )  # fmt: skip
    write_model(path, description, UNETR(**ARGUMENTS).state_dict())
    return path


def write_scan(path: Path, *, seed: int = 0, shape: tuple[int, ...] = (20, 20, 20), spacing: float = 4.0) -> Path:
    """Write a scan of noise and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(40, 60, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([spacing] * 3 + [1.0])), path)
    return path


def write_dicom_scan(folder: Path) -> Path:
    """Write a series of noise whose file names are against its order, with a localizer of another size, and return it."""
    rng = np.random.default_rng(0)
    heights = np.arange(12) * 4.0
    origins = np.stack([np.full(12, -30.0), np.full(12, -20.0), heights[::-1]], axis=1)
    uid = "1.2.826.0.1.3680043.8.498.1"
    write_series(folder, origins, spacing=(2.0, 2.5), uid=uid, value=lambda lps: rng.normal(40, 60, lps.shape[:-1]))
    write_series(folder, np.array([[0, 0, 90.0]]), size=(30, 30), uid=uid, prefix="scout", first_number=99)
    return folder


def segment_config(model: Path, scans: Path, output: Path, **options: Any) -> SegmentConfig:
    """Return the options that segment `scans` on the CPU."""
    return SegmentConfig(model=model, input=(str(scans),), output=output, device="cpu", **options)


def label_bytes(folder: Path) -> dict[str, bytes]:
    """Return the voxels of the label maps in a folder whose names have one character, by name."""
    return {path.name: read_label_map(path, allow_empty=True).array.tobytes() for path in folder.glob("?.nii.gz")}

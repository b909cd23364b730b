"""The atlas: what a model keeps of its labelled scan, so that the scan can be registered to others without being stored.

An atlas has the label map on the network's grid, and the features that do not depend on the contrast (MIND-SSC, the tissue
class of CT, and the share of the body, in 8 bits) on the coarse grid of the registration. It has no intensities and no name
of a patient.

    atlas = build_atlas(scan, labels, label_grid, name="OKBP_004", modality="ct")
    result = register_atlas(atlas, other_scan, report=report)
    labels = result.transform.warp_labels(atlas.labels, atlas.label_grid, other_grid)

`models.folder` stores the JSON and the tensors of an atlas; its reader gives them back to `Atlas.from_tensors`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from HiEndMAECore.errors import InputError
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import free_memory

from .features import MIND_CHANNELS, Features, Modality, RegistrationImage, extract_features
from .grids import Grid
from .registration import Registration, RegistrationSettings, register, working_spacing

MAX_FEATURE_VOXELS = 2**22  # of a stored atlas, as in model.json
MAX_LABEL_VOXELS = 2**30
_DEFAULTS = RegistrationSettings()
_CHANNELS = {
    "ct": MIND_CHANNELS + 2,
    "mri": MIND_CHANNELS + 1,
}  # with the share of the body, CT with the tissue class too
_DILATION = 2  # of MIND-SSC in stored atlases
_BYTES_PER_VOXEL = 650  # of a scan's features while they are registered; the discrete search takes most of it
_MAX_8_BIT_CLASS = 254  # 255 stays free for voxels that were not judged
_MAX_CLASS = 2**15 - 1
_MAX_POSITION_MM = 100_000.0
_SPACING_MM = (0.001, 100.0)
_MIN_VOLUME_SHARE = 0.01  # of a voxel, compared with the box of the same edges
_ADVICE = "Choose another model, or get this one again from where it came."


@dataclass(frozen=True, eq=False)
class Atlas:
    """What a model keeps of one labelled scan.

    Attributes:
        name: Name of the case. It is not stored: an atlas that was read is called by its position among the model's.
        modality: Of the scan.
        features: uint8 (C, X, Y, Z), at the spacing of the registration; 14 channels of CT and 13 of MRI.
        labels: uint8, or int16 where there are more classes, (X, Y, Z): 0 for background and i + 1 for the model's structure i.
        label_grid: Grid of the labels, in the same RAS mm.
    """

    name: str
    modality: Modality
    features: Features
    labels: Tensor
    label_grid: Grid

    def to_json(self) -> dict[str, Any]:
        """Return what describes the tensors, as an entry of `model.json`. The name is left out."""
        return {
            "modality": self.modality,
            "features": _grid_to_json(self.features.grid),
            "labels": _grid_to_json(self.label_grid),
        }

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the tensors "features" and "labels"."""
        return {"features": self.features.channels, "labels": self.labels}

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, Any],
        *,
        structures: int,
        name: str,
        source: Path | str,
    ) -> Atlas:
        """Return an atlas that was read from a file, after checking everything in it.

        Args:
            tensors: The tensors "features" and "labels".
            metadata: What `to_json` returned.
            structures: Number of structures of the model, which bounds the labels.
            name: Name of the atlas.
            source: The model, for messages.

        Raises:
            InputError: `model_unusable`: a tensor has another type or size, a grid is none, or a label is not a structure.
        """
        try:
            if metadata.get("modality") not in ("ct", "mri"):
                raise ValueError(f"its modality is {metadata.get('modality')!r}")
            grids = (_grid_from_json(metadata.get(key), key) for key in ("features", "labels"))
            feature_grid, label_grid = grids
            channels, labels = tensors.get("features"), tensors.get("labels")
            _check_tensor(
                channels,
                "features",
                (torch.uint8,),
                (_CHANNELS[metadata["modality"]], *feature_grid.shape),
                MAX_FEATURE_VOXELS,
            )
            _check_tensor(labels, "labels", (torch.uint8, torch.int16), label_grid.shape, MAX_LABEL_VOXELS)
            assert channels is not None and labels is not None  # noqa: PT018
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > structures:
                raise ValueError(f"its labels are {low} to {high}, must be 0 to {structures}")
        except ValueError as error:
            message = f"The model {source} cannot be used: of its atlas {name}, {error}."
            raise InputError("model_unusable", message, _ADVICE) from error
        return cls(name, metadata["modality"], Features(channels, feature_grid), labels, label_grid)


def build_atlas(
    image: RegistrationImage,
    labels: Tensor,
    label_grid: Grid,
    *,
    name: str,
    modality: Modality,
    settings: RegistrationSettings = _DEFAULTS,
) -> Atlas:
    """Return the atlas of a labelled scan, on the CPU.

    Args:
        image: The scan, preprocessed.
        labels: Integers (X, Y, Z) on `label_grid`: 0 for background and i + 1 for the model's structure i.
        label_grid: Grid of the labels, usually the network's.
        name: Name of the case.
        modality: Of the scan.
        settings: Give the spacing: 4 mm, finer for small scans.

    Raises:
        InputError: `scan_too_thin` for a single slice, or nearly so; `scan_shows_nothing` for a scan of equal voxels;
            `atlas_too_large` for a label map that no model may keep.
        ValueError: The labels are not on their grid, negative or too many.
    """
    if tuple(labels.shape) != tuple(label_grid.shape) or labels.is_floating_point():
        raise ValueError(f"labels of shape {tuple(labels.shape)} and type {labels.dtype} are not on {label_grid.shape}")
    if labels.numel() > MAX_LABEL_VOXELS:
        message = f"The label map of {name} has {labels.numel()} voxels on the network's grid; an atlas has up to 2^30."
        raise InputError("atlas_too_large", message, "Use a coarser --spacing, or leave the atlas out (--no-atlas).")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > _MAX_CLASS:
        raise ValueError(f"labels are {low} to {high}, must be 0 to {_MAX_CLASS}")
    spacing = working_spacing(image.grid, image.grid, settings)
    features = extract_features(image, modality=modality, spacing=spacing, dilation=_DILATION).to_8_bits()
    stored = labels.to("cpu", torch.uint8 if high <= _MAX_8_BIT_CLASS else torch.int16).contiguous()
    return Atlas(name, modality, Features(features.channels.cpu(), features.grid), stored, label_grid)


def register_atlas(
    atlas: Atlas,
    scan: RegistrationImage,
    *,
    report: Reporter,
    settings: RegistrationSettings = _DEFAULTS,
) -> Registration:
    """Register an atlas to a scan, on the scan's device.

    Args:
        atlas: The atlas, which is the moving side.
        scan: The scan, preprocessed.
        report: Receives progress and cancels.
        settings: Settings. The spacing is that of the atlas.

    Returns:
        The transform from the scan to the atlas, and how far to trust it.

    Raises:
        InputError: The scan is a single slice, or nearly so, or shows nothing; or `registration_too_large`: it does not fit
            in memory at the spacing of the atlas, which is fine where the labelled scan is small.
        Cancelled: The run is to stop.
    """
    _check_memory(atlas.features.grid, scan)
    moving = Features(atlas.features.channels.to(scan.image.device), atlas.features.grid)
    settings = dataclasses.replace(settings, dilation=_DILATION)
    return register(moving, scan, modality=atlas.modality, report=report, settings=settings)


def _check_memory(grid: Grid, scan: RegistrationImage) -> None:
    """Raise `InputError` when a scan cannot be registered in memory at the spacing of the atlas's features."""
    spacing = float(grid.spacing.mean())
    needed = float(np.prod(scan.grid.extent)) / spacing**3 * _BYTES_PER_VOXEL
    free = free_memory(scan.image.device)
    if needed > free:
        message = (
            f"Registration at the {spacing:.2g} mm of the labelled scan needs {needed / 1e9:.2f} GB of memory for this scan; "
            f"{free / 1e9:.2f} GB are free."
        )
        raise InputError(
            "registration_too_large", message, "Crop the scan to the labelled region, or free some memory."
        )


def _grid_to_json(grid: Grid) -> dict[str, Any]:
    """Return the shape and the affine of a grid as JSON."""
    return {"shape": [int(edge) for edge in grid.shape], "affine": np.asarray(grid.affine, dtype=np.float64).tolist()}


def _grid_from_json(data: Any, key: str) -> Grid:
    """Return a grid that was read from a file. Raises `ValueError` with a sentence part."""
    try:
        shape, affine = data["shape"], np.array(data["affine"], dtype=np.float64)
        x, y, z = (int(edge) for edge in shape)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the grid of the {key} is not a shape and an affine map") from error
    if affine.shape != (4, 4) or not (np.abs(affine) <= _MAX_POSITION_MM).all() or affine[3].tolist() != [0, 0, 0, 1]:
        raise ValueError(f"the affine map of the {key} is not one of finite numbers in mm")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < _SPACING_MM[0] or spacing.max() > _SPACING_MM[1]:
        raise ValueError(f"the spacing of the {key} is {spacing.tolist()} mm")
    if abs(np.linalg.det(affine[:3, :3])) < _MIN_VOLUME_SHARE * spacing.prod():
        raise ValueError(f"the affine map of the {key} cannot be inverted")
    return Grid((x, y, z), affine)


def _check_tensor(
    tensor: Tensor | None, key: str, types: tuple[torch.dtype, ...], shape: tuple[int, ...], max_voxels: int
) -> None:
    """Check the type and the size of a tensor that was read from a file. Raises `ValueError` with a sentence part."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"the {key} are missing")
    if tensor.dtype not in types or tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"the {key} are {tensor.dtype} {tuple(tensor.shape)}, must be {types[0]} {tuple(shape)}")
    if not 0 < math.prod(shape[-3:]) <= max_voxels:
        raise ValueError(f"the {key} have {math.prod(shape[-3:])} voxels, must be 1 to {max_voxels}")

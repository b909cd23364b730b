"""Validation of the entry `atlas` of `model.json`: what describes the tensors of `atlas.safetensors`, see `atlas_file`.

Only the standard library is needed. `model.schema.json` says the same, except for the products of the edges.
"""

from __future__ import annotations

import math
from typing import Any

from .json_values import MISSING, is_list, is_number, is_whole, require

MODALITIES = ("ct", "mri")
MAX_ATLASES = 1000
MAX_EDGE_VOXELS = 4096
MAX_FEATURE_VOXELS = 2**22
MAX_LABEL_VOXELS = 2**30
MAX_POSITION_MM = 100_000  # and the largest entry of an affine


def check_atlases(atlases: Any, key: str) -> None:
    """Check the entry `atlas`: one description for each labelled scan that the model keeps an atlas of.

    Args:
        atlases: The value to check.
        key: Its key path, for the message.

    Raises:
        SchemaError: The entry does not follow the schema.
    """
    valid = isinstance(atlases, list) and 1 <= len(atlases) <= MAX_ATLASES
    require(valid, key, atlases, f"a list with an entry for each atlas, 1 to {MAX_ATLASES}")
    for index, atlas in enumerate(atlases):
        item = f"{key}[{index}]"
        require(isinstance(atlas, dict), item, atlas, "an object")
        modality = atlas.get("modality", MISSING)
        require(modality in MODALITIES, f"{item}.modality", modality, " or ".join(map(repr, MODALITIES)))
        _check_grid(atlas.get("features", MISSING), f"{item}.features", MAX_FEATURE_VOXELS)
        _check_grid(atlas.get("labels", MISSING), f"{item}.labels", MAX_LABEL_VOXELS)


def _check_grid(grid: Any, key: str, max_voxels: int) -> None:
    """Check a grid: {"shape": three edges in voxels, "affine": four rows, from voxel index to RAS mm}."""
    require(isinstance(grid, dict), key, grid, "an object")
    shape, affine = grid.get("shape", MISSING), grid.get("affine", MISSING)
    valid = is_list(shape, 3) and all(is_whole(edge, 1, MAX_EDGE_VOXELS) for edge in shape)
    require(valid, f"{key}.shape", shape, f"three whole numbers from 1 to {MAX_EDGE_VOXELS} (voxels)")
    require(math.prod(shape) <= max_voxels, f"{key}.shape", shape, f"at most {max_voxels} voxels in all")
    valid = is_list(affine, 4) and all(
        is_list(row, 4) and all(is_number(value, -MAX_POSITION_MM, MAX_POSITION_MM) for value in row) for row in affine
    )
    requirement = f"four rows of four numbers from {-MAX_POSITION_MM} to {MAX_POSITION_MM} (mm)"
    require(valid, f"{key}.affine", affine, requirement)
    require(affine[3] == [0, 0, 0, 1], f"{key}.affine[3]", affine[3], "[0, 0, 0, 1]")

"""Descriptions of small models, valid unless a test changes them."""

from __future__ import annotations

from typing import Any

from HiEndMAECore.models.description import ModelDescription

UNETR_ARGUMENTS: dict[str, Any] = {
    "image_size": (8, 8, 8),
    "patch_size": 4,
    "in_channels": 1,
    "classes": 3,
    "encoder_dim": 24,
    "encoder_depth": 4,
    "encoder_heads": 2,
    "feature_size": 4,
}


def describe(**changes: object) -> ModelDescription:
    """Return the description of a UNETR for two structures, with changed fields."""
    values: dict[str, Any] = {
        "kind": "segmentation",
        "name": "Léber – test",
        "architecture": {"network": "UNETR", "variant": "", "arguments": UNETR_ARGUMENTS},
        "channels": ["CT"],
        "preparation": {
            "spacing": [4.0, 4.0, 4.0],
            "normalisation": {"kind": "window", "low": -175.0, "high": 250.0},
            "orientation": "RAS",
        },
        "labels": [{"value": 2, "name": "liver", "colour": [1, 2, 3]}, {"value": 5, "name": "spleen"}],
        "training": {"steps": 3},
    }
    return ModelDescription(**{**values, **changes})

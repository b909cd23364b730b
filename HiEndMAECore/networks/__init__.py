"""The networks: ViT encoder; Hi-End-MAE, MAE and inpainting for pretraining; UNETR and a hybrid for segmentation;
the variants' sizes.

Names are exported lazily: `list_variants` and the variants' sizes need no torch, the networks do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hi_end_mae import MAE, HiEndMAE, Reconstruction
    from .hybrid import HybridUNETR
    from .inpainting import Inpainting
    from .registry import (
        Variant,
        build_pretraining_model,
        build_segmentation,
        find_variant,
        list_variants,
        segmentation_architecture,
    )
    from .unetr import UNETR

_ROOMS = {
    "HiEndMAE": "hi_end_mae",
    "HybridUNETR": "hybrid",
    "Inpainting": "inpainting",
    "MAE": "hi_end_mae",
    "Reconstruction": "hi_end_mae",
    "UNETR": "unetr",
    "Variant": "registry",
    "build_pretraining_model": "registry",
    "build_segmentation": "registry",
    "find_variant": "registry",
    "list_variants": "registry",
    "segmentation_architecture": "registry",
}
__all__ = [
    "MAE",
    "UNETR",
    "HiEndMAE",
    "HybridUNETR",
    "Inpainting",
    "Reconstruction",
    "Variant",
    "build_pretraining_model",
    "build_segmentation",
    "find_variant",
    "list_variants",
    "segmentation_architecture",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)

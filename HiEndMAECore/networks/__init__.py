"""Networks: the ViT encoder, the masked autoencoders for pretraining, and the segmentation networks.

Names are exported lazily: `list_variants` and the sizes of the variants need no torch, the networks do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hi_end_mae import MAE, HiEndMAE, Reconstruction
    from .hybrid_unetr import HybridUNETR
    from .registry import build_network, build_pretraining_model
    from .unetr import UNETR
    from .variants import Variant, get_variant, list_variants, segmentation_architecture

_LAZY_EXPORTS = {
    "HiEndMAE": "hi_end_mae",
    "HybridUNETR": "hybrid_unetr",
    "MAE": "hi_end_mae",
    "Reconstruction": "hi_end_mae",
    "UNETR": "unetr",
    "Variant": "variants",
    "build_network": "registry",
    "build_pretraining_model": "registry",
    "get_variant": "variants",
    "list_variants": "variants",
    "segmentation_architecture": "variants",
}
__all__ = [
    "MAE",
    "UNETR",
    "HiEndMAE",
    "HybridUNETR",
    "Reconstruction",
    "Variant",
    "build_network",
    "build_pretraining_model",
    "get_variant",
    "list_variants",
    "segmentation_architecture",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY_EXPORTS[name]}", __name__), name)

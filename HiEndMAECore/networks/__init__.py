"""Networks: the ViT encoder, the masked autoencoders for pretraining, and the segmentation networks.

Names are exported lazily: `list_variants`, `list_networks` and the sizes of variants need no torch, the networks do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hi_end_mae import MAE, HiEndMAE, Reconstruction
    from .hybrid_unetr import HybridUNETR
    from .interface import LayerGroup, NetworkConfig, NetworkTraits, SegmentationNetwork, group_by_depth
    from .registry import (
        build_network,
        build_pretraining_model,
        list_networks,
        list_variants,
        register_network,
        segmentation_architecture,
    )
    from .unetr import UNETR
    from .variants import Variant, get_variant

_LAZY_EXPORTS = {
    "HiEndMAE": "hi_end_mae",
    "HybridUNETR": "hybrid_unetr",
    "LayerGroup": "interface",
    "MAE": "hi_end_mae",
    "NetworkConfig": "interface",
    "NetworkTraits": "interface",
    "Reconstruction": "hi_end_mae",
    "SegmentationNetwork": "interface",
    "UNETR": "unetr",
    "Variant": "variants",
    "build_network": "registry",
    "build_pretraining_model": "registry",
    "get_variant": "variants",
    "group_by_depth": "interface",
    "list_networks": "registry",
    "list_variants": "registry",
    "register_network": "registry",
    "segmentation_architecture": "registry",
}
__all__ = [
    "MAE",
    "UNETR",
    "HiEndMAE",
    "HybridUNETR",
    "LayerGroup",
    "NetworkConfig",
    "NetworkTraits",
    "Reconstruction",
    "SegmentationNetwork",
    "Variant",
    "build_network",
    "build_pretraining_model",
    "get_variant",
    "group_by_depth",
    "list_networks",
    "list_variants",
    "register_network",
    "segmentation_architecture",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY_EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY_EXPORTS[name]}", __name__), name)

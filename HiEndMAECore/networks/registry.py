"""The variants: how large each network is. Plain data; torch is imported only where a network is built.

The first three are the paper's (Table S3, sizes as in the released code, which the released weights fit). The small
ones are ours, for computers without a GPU: same depth and same layers queried, so that the method is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .variants import Variant, pretraining_arguments

if TYPE_CHECKING:
    from .hi_end_mae import HiEndMAE
    from .hybrid_unetr import HybridUNETR
    from .unetr import UNETR


def build_pretraining_model(variant: str | Variant, **options: Any) -> HiEndMAE:
    """The pretraining model of a variant; `options` as in `pretraining_arguments`."""
    from .hi_end_mae import HiEndMAE

    return HiEndMAE(**pretraining_arguments(variant, **options))


def build_network(architecture: Mapping[str, Any]) -> UNETR | HybridUNETR:
    """The network of `segmentation_architecture`; raises `ValueError` or `TypeError` for one that cannot be built."""
    from .hybrid_unetr import HybridUNETR
    from .unetr import UNETR

    networks: dict[str, type[UNETR | HybridUNETR]] = {"UNETR": UNETR, "HybridUNETR": HybridUNETR}
    if architecture["network"] not in networks:
        raise ValueError(f"there is no network {architecture['network']!r}; known are {', '.join(networks)}")
    return networks[architecture["network"]](**architecture["arguments"])

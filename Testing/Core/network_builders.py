"""Small networks of every kind for the tests."""

from __future__ import annotations

from typing import Any

import torch

from HiEndMAECore.networks import build_network, list_networks, list_variants, registry, segmentation_architecture
from HiEndMAECore.networks.interface import SegmentationNetwork, fit_size

TINY = "hi_end_mae_vit_tiny_8p"


NETWORKS = list_networks()


def smallest_architecture(name: str, *, classes: int = 3, in_channels: int = 1) -> dict[str, Any]:
    """Return the network's default variant (the tiny one of a ViT) with the smallest images that are worth a test."""
    variant = TINY if TINY in list_variants(name) else list_variants(name)[0]
    architecture = segmentation_architecture(variant, classes=classes, in_channels=in_channels, network=name)
    network, config = registry.network_class(name), registry.network_config(architecture)
    size = fit_size(network, config, [2 * edge for edge in network.size_divisor(config)])
    arguments = {**architecture["arguments"], "image_size": size}
    return {**architecture, "arguments": arguments}


def build(name: str, **options: Any) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(smallest_architecture(name, **options))

"""Networks that regroup MONAI's blocks compute what MONAI's networks compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network_builders import build


@pytest.mark.parametrize(
    ("name", "monai_name", "arguments"),
    [
        ("unet", "UNet", {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}),
        (
            "dynunet",
            "DynUNet",
            {
                "kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3,
                "filters": [16, 32, 64, 128], "res_block": True, "deep_supervision": True, "deep_supr_num": 2,
            },
        ),
        ("segresnet", "SegResNet", {"init_filters": 16, "blocks_down": (1, 1, 1, 2), "blocks_up": (1, 1, 1)}),
        (
            "mednext",
            "MedNeXt",
            {
                "init_filters": 16, "kernel_size": 3, "use_residual_connection": True, "blocks_down": (1, 1, 1),
                "blocks_bottleneck": 1, "blocks_up": (1, 1, 1),
            },
        ),
    ],
)  # fmt: skip
def test_network_computes_what_monais_computes(name: str, monai_name: str, arguments: dict[str, Any]) -> None:
    """Regrouping MONAI's blocks changes neither the random weights of a seed nor the result."""
    monai_nets = pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    monai_network = getattr(monai_nets, monai_name)(spatial_dims=3, in_channels=1, out_channels=3, **arguments)
    network = build(name)
    image = torch.rand(1, 1, *network.config.image_size)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), monai_network.eval()(image))

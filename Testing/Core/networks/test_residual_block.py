"""The residual block and the voxel shuffle against MONAI's."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from monai.networks.blocks import UnetResBlock
from monai.networks.utils import pixelshuffle

from HiEndMAECore.networks.layers.residual_block import ResidualBlock, shuffle_voxels


@pytest.mark.parametrize(("in_channels", "out_channels", "stride"), [(3, 3, 1), (2, 4, 1), (3, 6, 2)])
def test_residual_block_equals_that_of_monai(in_channels: int, out_channels: int, stride: int) -> None:
    torch.manual_seed(1)
    expected = UnetResBlock(3, in_channels, out_channels, kernel_size=3, stride=stride, norm_name="instance")
    torch.manual_seed(1)
    block = ResidualBlock(in_channels, out_channels, stride=stride)
    assert list(block.state_dict()) == list(expected.state_dict())
    for name, value in expected.state_dict().items():
        assert torch.equal(block.state_dict()[name], value), name
    image = torch.rand(2, in_channels, 8, 6, 4)
    torch.testing.assert_close(block(image), expected(image), rtol=0, atol=0)


def test_shuffle_voxels_equals_that_of_monai() -> None:
    x = torch.rand(2, 24, 3, 4, 5)
    assert torch.equal(shuffle_voxels(x, 2), pixelshuffle(x, spatial_dims=3, scale_factor=2))


def test_default_segmentation_network_is_built_without_importing_monai() -> None:
    code = (
        "import sys; from HiEndMAECore.networks import build_network, segmentation_architecture; "
        "import HiEndMAECore.inference.batch_segmentation; "
        "build_network(segmentation_architecture('hi_end_mae_vit_tiny_8p', classes=2)); "
        "assert 'monai' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

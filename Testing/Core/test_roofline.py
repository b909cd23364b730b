"""The roofline benchmark counts the operations of a training step and assigns each product to one layer."""

from __future__ import annotations

import contextlib

import pytest
import roofline
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from HiEndMAECore.training.default_recipe import draw_batch


def test_count_flop_of_a_convolution_has_no_input_gradient_for_the_image() -> None:
    layer = nn.Conv3d(2, 8, kernel_size=3, padding=1)
    product = 2 * 2 * 8 * 27 * 6**3  # multiplications and additions of one of the three products
    for needs_gradient, products in ((False, 2), (True, 3)):
        image = torch.rand(1, 2, 6, 6, 6, requires_grad=needs_gradient)
        assert roofline.count_flop(roofline.LayerCall("stem", layer, (image,))) == products * product
    assert layer.weight.grad is None


def test_layers_of_the_shipped_network_have_all_products_of_a_step() -> None:
    step = roofline.Step("cpu", batch=1, classes=14, precision="fp32")
    image, *_ = draw_batch(step.cases, step.recipe, step=0, plan=step.plan)
    names = roofline.product_layers(step.network, image)
    assert {"stem", "out", "encoder.patch_embed", "encoder.blocks.0.attn", "encoder.blocks.0.mlp.fc1"} <= names
    calls = roofline.record_calls(step.network, image, names, contextlib.nullcontext)
    total = sum(roofline.count_flop(call) for call in calls)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step.network(image).sum().backward()
    assert total == counter.get_total_flops()
    assert total == pytest.approx(22.3e9, rel=0.01)


def test_table_has_the_share_of_the_rate() -> None:
    rows = [roofline.Row("stem", 2e9, 0.1, 0.04), roofline.Row("crops", 0, 0.005)]
    assert roofline.table(rows, rate=100e9).splitlines()[2:] == [
        "| stem | 2.00 | 100.0 | 40.0 | 60.0 | 20.0 | 20% |",
        "| crops |  | 5.0 |  |  |  |  |",
    ]


def test_group_name_is_the_part_of_the_network() -> None:
    names = ("stem", "up.0", "down.0.conv1.conv", "encoder.blocks.3.attn")
    assert [roofline.group_name(name) for name in names] == ["stem", "up.0", "down.0", "encoder.blocks"]

"""The list of operators for Apple's graphics: read from torch's table of kernels, and recorded from the engine."""

from __future__ import annotations

import mps_operators
import pytest
import torch


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convolution", "native"),
        ("native_batch_norm_backward", "native"),
        ("add_.Tensor", "native"),  # by its structured delegate
        ("reshape", "composite"),
        ("_safe_softmax", "composite"),
        ("slow_conv3d_forward", "absent"),
        ("fractional_max_pool3d", "absent"),
    ],
)
def test_support_follows_the_table_of_kernels(name: str, expected: str) -> None:
    assert mps_operators.support(name, mps_operators.kernel_table()) == expected


def test_recorder_names_operators_on_volumes_and_float64() -> None:
    with mps_operators.OperatorRecorder() as recorder:
        torch.ones(1, 1, 2, 2, 2) * 2
        torch.ones(2, dtype=torch.float64).exp()
    assert recorder.found["mul.Tensor"]
    assert not recorder.found["exp"]
    assert "exp" in recorder.doubles


def test_operators_of_the_default_network_have_mps_kernels() -> None:
    """The crops may need others, because the CPU cuts them."""
    crops, training, segmentation = mps_operators.record("hybrid_unetr")
    table = mps_operators.kernel_table()
    assert {"grid_sampler_3d", "convolution", "convolution_backward"} <= crops.found.keys() | training.found.keys()
    absent = {name for name in (*training.found, *segmentation.found) if mps_operators.support(name, table) == "absent"}
    assert not absent
    assert not training.doubles | segmentation.doubles

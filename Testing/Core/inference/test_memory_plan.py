"""Memory plan: batch size, device and precision of the sums for the memory that is free."""

from __future__ import annotations

import pytest
import torch
from inference_helpers import CPU, GB

from HiEndMAECore.errors import OutOfMemoryError
from HiEndMAECore.inference import memory_plan
from HiEndMAECore.inference.memory_plan import (
    BYTES_PER_VOXEL_RESAMPLING,
    check_resampling_memory,
    has_memory_for_overlap,
    plan_memory,
)
from HiEndMAECore.runtime.memory import BYTES_PER_VOXEL_READING, Cost

VOXELS = 200 * 200 * 144


@pytest.mark.parametrize(
    ("device", "free_device", "free_system", "batch_size", "sums_device", "dtype"),
    [
        ("cuda", 80 * GB, 32 * GB, 4, "cuda", torch.float32),
        ("cuda", 4 * GB, 32 * GB, 1, "cuda", torch.float32),
        ("cuda", 2 * GB, 32 * GB, 1, "cpu", torch.float32),
        ("cuda", 2 * GB, int(1.2 * GB), 1, "cpu", torch.float16),
        ("cpu", 32 * GB, 32 * GB, 1, "cpu", torch.float32),
        ("cpu", 4 * GB, 4 * GB, 1, "cpu", torch.float32),
        ("cpu", 3 * GB, 3 * GB, 1, "cpu", torch.float16),
    ],
)
def test_plan_fits_the_free_memory(
    device: str, free_device: int, free_system: int, batch_size: int, sums_device: str, dtype: torch.dtype
) -> None:
    plan = plan_memory(
        VOXELS, classes=61, tiles=100, device=torch.device(device),
        probe=Cost(int(1.5 * GB), 0.5), free_device=free_device, free_system=free_system,
    )  # fmt: skip
    assert (plan.batch_size, plan.sums_device.type, plan.sums_dtype) == (batch_size, sums_device, dtype)
    assert plan.expected_seconds == 50
    assert f"{plan.sums_bytes / 1e9:.2f} GB" in str(plan)


def test_plan_does_not_count_a_tile_on_the_card_as_system_memory() -> None:
    """16-bit sums of 4.4 GB fit into 4.7 GB of system memory; the tile of 4 GB lies on the card."""
    voxels = int(4.4 * GB) // (61 * 2 + 4)
    plan = plan_memory(
        voxels, classes=61, tiles=9, device=torch.device("cuda", 0), probe=Cost(4 * GB),
        free_device=5 * GB, free_system=int(4.7 * GB),
    )  # fmt: skip
    assert (plan.batch_size, plan.sums_device, plan.sums_dtype) == (1, CPU, torch.float16)
    assert plan.sums_bytes == pytest.approx(4.4 * GB, rel=1e-3)
    with pytest.raises(OutOfMemoryError, match=r"needs 4\.40 GB .* 4\.30 GB are free"):
        plan_memory(
            voxels, classes=61, tiles=9, device=torch.device("cuda", 0), probe=Cost(4 * GB),
            free_device=5 * GB, free_system=int(4.3 * GB),
        )  # fmt: skip


def test_plan_of_a_scan_that_cannot_fit_is_refused() -> None:
    with pytest.raises(OutOfMemoryError, match=r"needs 1\.23 GB") as caught:
        plan_memory(VOXELS, classes=61, tiles=9, device=CPU, probe=Cost(GB // 2), free_device=GB, free_system=GB)
    assert caught.value.code == "scan_too_large"


def test_plan_to_json_keeps_the_field_names_of_the_event() -> None:
    plan = plan_memory(100, classes=3, tiles=7, device=CPU, probe=Cost(), free_device=GB, free_system=GB)
    assert plan.to_json() == {
        "tiles": 7, "batch": 1, "sums_bytes": 1600, "sums_on": "cpu", "sums_in": "torch.float32",
    }  # fmt: skip


def test_resampling_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 1000 * BYTES_PER_VOXEL_RESAMPLING)
    check_resampling_memory(1000)
    with pytest.raises(OutOfMemoryError, match="result of this scan") as caught:
        check_resampling_memory(1001)
    assert caught.value.code == "scan_too_large"


def test_overlap_needs_memory_for_every_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    one_channel = 1000 * (BYTES_PER_VOXEL_READING + BYTES_PER_VOXEL_RESAMPLING)
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: int(1.2 * one_channel))
    assert has_memory_for_overlap(1000, 1)
    assert not has_memory_for_overlap(1000, 2)

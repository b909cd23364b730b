"""Devices: half precision that a graphics card computes well, and whether Apple's graphics compute the networks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from HiEndMAECore.runtime import devices, diagnostics
from HiEndMAECore.runtime.devices import autocast

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "inference", "dtype"),
    [
        ((8, 0), True, torch.bfloat16),
        ((7, 5), True, torch.float16),
        ((7, 5), False, None),
        ((9, 0), False, torch.bfloat16),
    ],
)
def test_autocast_chooses_the_precision_by_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], inference: bool, dtype: torch.dtype | None
) -> None:
    """The capability is replaced, because the test runs without a card; torch may warn that there is none."""
    chosen: dict[str, object] = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: chosen.update(options))
    autocast(torch.device("cuda"), inference=inference)
    assert (chosen["dtype"] if chosen["enabled"] else None) == dtype


def test_computes_networks_accepts_the_cpu_and_refuses_a_device_without_values() -> None:
    assert devices.computes_networks(CPU)
    assert not devices.computes_networks(torch.device("meta"))


@pytest.mark.parametrize("name", ["conv3d", "conv_transpose3d"])
@pytest.mark.parametrize("fault", ["absent", "wrong values", "wrong gradients"])
def test_computes_networks_refuses_a_faulty_operation(monkeypatch: pytest.MonkeyPatch, name: str, fault: str) -> None:
    """The stand-in for Apple's graphics is the second half of the calls, which compute on the CPU with the fault."""
    correct, calls = getattr(F, name), []
    half = 4 if name == "conv3d" else 1

    def stand_in(*args: torch.Tensor, **options: int) -> torch.Tensor:
        calls.append(name)
        result: torch.Tensor = correct(*args, **options)
        if len(calls) <= half:
            return result
        if fault == "absent":
            raise NotImplementedError(f"{name} is not implemented for the device")
        return result * 1.01 if fault == "wrong values" else result * 0.9 + result.detach() * 0.1

    monkeypatch.setattr(F, name, stand_in)
    assert not devices.computes_networks(CPU)
    assert len(calls) > half


def test_sampling_device_is_the_cpu_for_apples_graphics_alone() -> None:
    assert devices.sampling_device(torch.device("mps")) == CPU
    for name in ("cpu", "cuda:1"):
        assert devices.sampling_device(torch.device(name)) == torch.device(name)


def test_find_devices_explains_apples_graphics_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """This torch reports Apple's graphics, but has no kernels for them."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    devices.mps_is_usable.cache_clear()
    found, problems = diagnostics.find_devices()
    devices.mps_is_usable.cache_clear()
    assert "mps" not in [device["device"] for device in found]
    assert [problem.code for problem in problems if "Apple" in problem.message] == ["gpu_unsupported"]

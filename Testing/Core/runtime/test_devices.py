"""Autocast: the half precision that a graphics card computes well."""

from __future__ import annotations

import pytest
import torch

from HiEndMAECore.runtime.devices import autocast


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

"""Forward pass of inference: `exact` computes in full 32 bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from network_builders import NETWORKS, build

from HiEndMAECore.inference import forward as forward_module
from HiEndMAECore.inference.forward import forward, store_weights_in_bf16
from HiEndMAECore.runtime import devices


@pytest.fixture
def tf32_backends() -> Iterator[tuple]:
    """Allow TF32 in every backend until the test is over (monkeypatch cannot restore these attributes)."""
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield backends
    for backend, allowed in zip(backends, before):
        backend.allow_tf32 = allowed


@pytest.mark.parametrize("exact", [True, False])
def test_forward_uses_tf32_only_if_not_exact(exact: bool, tf32_backends: tuple) -> None:
    allowed: list[bool] = []

    class RecordingNetwork(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            allowed.extend(backend.allow_tf32 for backend in tf32_backends)
            return tiles

    forward(RecordingNetwork(), torch.ones(1, 1, 4, 4, 4), exact=exact)
    assert allowed == [not exact] * 2
    assert all(backend.allow_tf32 for backend in tf32_backends)  # restored


@pytest.mark.parametrize("name", NETWORKS)
def test_store_weights_in_bf16_changes_no_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cpu_has_bf16", lambda: True)
    monkeypatch.setattr(forward_module, "cpu_has_bf16", lambda: True)
    network = build(name).eval()
    tile = torch.rand(1, 1, *network.config.image_size)
    with torch.inference_mode():
        expected = forward(network, tile, exact=False)
        store_weights_in_bf16(network)
        assert torch.equal(forward(network, tile, exact=False), expected)
    assert any(parameter.dtype == torch.bfloat16 for parameter in network.parameters())

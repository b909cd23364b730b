"""Forward pass of inference: `exact` computes in full 32 bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from HiEndMAECore.inference.forward import forward


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

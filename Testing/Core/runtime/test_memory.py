"""Free memory in containers, and the measurement of a peak."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from inference_helpers import CPU

from HiEndMAECore.runtime.memory import _group_memory, free_memory, measure_peak


def test_free_memory_respects_every_limit_of_a_container(tmp_path: Path) -> None:
    """Both versions of cgroups. A parent group may have the lower limit; the page cache does not count as used."""
    for folder, limit in (("a", "9000"), ("a/b", "max")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "memory.max").write_text(limit)
        (tmp_path / folder / "memory.current").write_text("5000")
        (tmp_path / folder / "memory.stat").write_text("anon 1\ninactive_file 1500\n")
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    assert list(_group_memory(tmp_path, tmp_path / "cgroup")) == [5500]
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("7000")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("8000")
    (tmp_path / "memory" / "memory.stat").write_text("cache 1\n")
    (tmp_path / "cgroup").write_text("5:cpu:/x\n4:memory:/\n")
    assert list(_group_memory(tmp_path, tmp_path / "cgroup")) == [0]
    assert free_memory(CPU) > 10**7


def test_measure_peak_of_an_allocation_reports_seconds_and_bytes() -> None:
    with measure_peak(CPU) as cost:
        allocation = torch.ones(50_000_000)
    assert cost.seconds > 0
    if sys.platform == "linux":
        assert cost.bytes is not None
        assert cost.bytes > 150_000_000
    del allocation

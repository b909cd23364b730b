"""Free memory in containers, and the measurement of a peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bare_python import REPOSITORY
from inference_helpers import CPU

from HiEndMAECore.runtime.memory import _group_memory, free_memory


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


MEASURE = """
import torch
from HiEndMAECore.runtime.memory import measure_peak

with measure_peak(torch.device("cpu")) as cost:
    allocation = torch.ones(50_000_000)
print(cost.seconds, cost.bytes)
"""


def test_measure_peak_of_an_allocation_reports_seconds_and_bytes() -> None:
    """In a process of its own: the system may take idle pages from a process that has computed for long."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    )
    seconds, peak = map(float, result.stdout.split())
    assert seconds > 0
    assert 150_000_000 < peak < 400_000_000

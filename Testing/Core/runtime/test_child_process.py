"""Child processes: measured processor time, output, and the end of a child when the run is cancelled."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from HiEndMAECore.runtime import child_process
from HiEndMAECore.runtime.child_process import run_child, thread_environment
from HiEndMAECore.runtime.processes import process_exists

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


def test_run_child_measures_processor_time_of_grandchildren(tmp_path: Path) -> None:
    code = f"import subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {BURN.format(seconds=0.6)!r}])\n"
    code += "time.sleep(0.5)\nprint('done')\nprint('to the log', file=sys.stderr)\nsys.exit(3)\n"
    result = run_child([sys.executable, "-c", code], environment=os.environ, log=tmp_path / "log.txt")
    assert (result.exit_code, result.output.strip()) == (3, "done")
    assert 0.6 <= result.cpu_seconds < 2.0
    assert result.clock_seconds >= 1.1
    assert "to the log" in (tmp_path / "log.txt").read_text()


def test_wait_by_samples_measures_about_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no wait4; the samples are tested on every system."""
    monkeypatch.delattr(child_process.os, "wait4", raising=False)
    command = [sys.executable, "-c", BURN.format(seconds=1.0) + "time.sleep(0.5)"]
    result = run_child(command, environment=os.environ, log=tmp_path / "log.txt")
    assert result.exit_code == 0
    assert 0.7 <= result.cpu_seconds < 2.0


def test_run_child_ends_the_child_when_the_run_is_cancelled(tmp_path: Path) -> None:
    pid_file, started = tmp_path / "pid", time.monotonic()
    code = f"import os, time, pathlib\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(60)\n"

    def check() -> None:
        if pid_file.exists() and pid_file.read_text():
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_child([sys.executable, "-c", code], environment=os.environ, log=tmp_path / "log.txt", check=check)
    assert time.monotonic() - started < 30
    assert not process_exists(int(pid_file.read_text()))


def test_thread_environment_limits_the_numerical_libraries() -> None:
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"

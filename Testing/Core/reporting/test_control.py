"""Requests to a run: the control file, the parent process and signals reach it within seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bare_python import run_bare

from HiEndMAECore.errors import Cancelled
from HiEndMAECore.reporting import events
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.processes import process_exists

LIMIT_SECONDS = 3.0  # the control file is read every second, and other programs may use the processor too


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` is True; fail after `LIMIT_SECONDS`."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < LIMIT_SECONDS, "not received in time"
        time.sleep(0.02)


def is_cancelled(report: Reporter) -> bool:
    try:
        report.check()
    except Cancelled:
        return True
    return False


@pytest.mark.parametrize("word", ["finish", "cancel"])
def test_control_file_request_is_received(tmp_path: Path, word: str) -> None:
    control = tmp_path / "control"
    with Reporter(quiet=True, control=control) as report:
        control.write_text("fini")  # half written
        time.sleep(1.1)
        assert (report.finish_requested, is_cancelled(report)) == (False, False)
        control.write_text(f"{word.upper()}\r\n")
        wait_for(lambda: report.finish_requested or is_cancelled(report))
        assert (report.finish_requested, is_cancelled(report)) == (word == "finish", word == "cancel")
        if word == "cancel":
            with pytest.raises(Cancelled):
                report.progress("tiles", 1, 2)


def test_control_file_that_exists_at_the_start_is_received_at_once(tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.write_text("cancel")
    with Reporter(quiet=True, control=control) as report:
        assert is_cancelled(report)


def test_requests_from_python_are_received() -> None:
    report = Reporter(quiet=True)
    report.request_finish()
    assert (report.finish_requested, is_cancelled(report)) == (True, False)
    report.cancel()
    assert is_cancelled(report)


def test_end_of_the_parent_process_cancels() -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with Reporter(quiet=True, parent_pid=parent.pid) as report:
        assert not is_cancelled(report)
        parent.communicate(b"\n")
        wait_for(lambda: is_cancelled(report))


def test_process_exists_only_while_the_process_runs() -> None:
    assert process_exists(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_exists(child.pid)
    child.communicate(b"\n")
    assert not process_exists(child.pid)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no zombies")
def test_process_exists_is_false_for_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.close()  # it ends, and nobody has waited for it yet
    wait_for(lambda: not process_exists(child.pid))
    assert child.returncode is None
    child.wait()


def test_process_exists_is_true_on_a_bare_python() -> None:
    """Without psutil a run must not end because its parent seems to be gone."""
    result = run_bare("from HiEndMAECore.runtime.processes import process_exists; assert process_exists(2 ** 22 + 1)")
    assert result.returncode == 0, result.stderr


CHILD = """
import sys, time
from HiEndMAECore.cli.options import CommandConfig
from HiEndMAECore.cli.runner import run_command

def run(config, report):
    print("a library that prints")
    ignores_requests = config.seed == 7
    for step in range(3000):
        time.sleep(0.01)
        if not ignores_requests:
            report.progress("steps", step, 3000)
            if report.finish_requested:
                return {"stopped": "early"}
        elif step == 0:
            report.progress("steps", step, 3000)
    return {}

sys.exit(run_command(CommandConfig, run, None, command="sleep", description=""))
"""


def start_child(*argv: str) -> subprocess.Popen:
    """Start a run of half a minute, and return when it has reported progress."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        event = events.decode(line)
        assert event is not None
        if event["event"] == "progress":
            return child
    raise AssertionError("the child reported no progress")


def wait_for_end(child: subprocess.Popen) -> tuple[int, dict, float]:
    """Return (exit code, last event, seconds until the end); every line must be an event."""
    start = time.monotonic()
    out, _ = child.communicate(timeout=20)
    received = [events.decode(line) for line in out.splitlines()]
    assert None not in received
    return child.returncode, received[-1], time.monotonic() - start  # type: ignore[return-value]


def test_run_with_finish_in_its_control_file_ends_with_outputs(tmp_path: Path) -> None:
    child = start_child("--events", "--control", str(tmp_path / "control"))
    (tmp_path / "control").write_text("finish")
    code, last, seconds = wait_for_end(child)
    assert (code, last["event"], last["outputs"]) == (0, "finished", {"stopped": "early"})
    assert seconds < LIMIT_SECONDS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals; the control file is used there")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_run_that_receives_a_signal_is_cancelled(number: str) -> None:
    child = start_child("--events")
    child.send_signal(getattr(signal, number))
    code, last, seconds = wait_for_end(child)
    assert (code, last["event"], last["code"]) == (130, "failed", "cancelled")
    assert seconds < LIMIT_SECONDS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals; the control file is used there")
def test_run_that_ignores_a_cancel_is_interrupted_by_the_second_signal() -> None:
    child = start_child("--events", "--seed", "7")
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert wait_for_end(child)[0] == 130


def test_run_whose_reader_has_gone_continues(tmp_path: Path) -> None:
    child = start_child("--events", "--control", str(tmp_path / "control"))
    assert child.stdout is not None
    child.stdout.close()
    time.sleep(0.6)
    assert child.poll() is None
    (tmp_path / "control").write_text("finish")
    assert child.wait(timeout=10) == 0
    assert child.stderr is not None
    child.stderr.close()

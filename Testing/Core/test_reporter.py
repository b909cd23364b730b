"""What a run says reaches a program as events and a person as sentences; what it is told reaches it within seconds."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from HiEndMAECore.errors import Cancelled, InputError
from HiEndMAECore.reporting import events
from HiEndMAECore.reporting.console import Console, duration
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.processes import process_exists

ENOUGH = 3.0  # seconds: the control file is looked at every second, and other work may keep the processor busy


def heard(stream: io.StringIO) -> list[dict]:
    lines = [events.decode(line) for line in stream.getvalue().splitlines()]
    assert None not in lines
    return lines


def wait_for(happened) -> float:
    """Seconds until `happened()`; fails after `ENOUGH`."""
    start = time.monotonic()
    while not happened():
        assert time.monotonic() - start < ENOUGH, "not seen in time"
        time.sleep(0.02)
    return time.monotonic() - start


def is_cancelled(report: Reporter) -> bool:
    try:
        report.check()
    except Cancelled:
        return True
    return False


def test_everything_said_is_an_event() -> None:
    stream = io.StringIO()
    with Reporter(command="x", as_events=True, stream=stream) as report:
        for step in report.steps("tiles", 3):
            report.metric("loss", float("nan"), step=step)
        report.preview(Path("pic.png"))
        report.warning("odd", "Überraschung.", "Look.")
        report.warning("odd", "Überraschung.", "Look.")  # told once
        report.info("For people only.")
        report.finished({"model": Path("m")})
    told = heard(stream)
    assert [one["event"] for one in told if one["event"] != "progress"] == [
        *["metric"] * 3,
        "preview",
        "warning",
        "finished",
    ]
    steps = [one["step"] for one in told if one["event"] == "progress"]
    assert (steps[0], steps[-1]) == (0, 3)
    assert told[-1]["outputs"] == {"model": "m"}
    assert report.warnings == [{"code": "odd", "message": "Überraschung.", "advice": "Look."}]
    assert stream.getvalue().isascii()


def test_progress_is_throttled_and_its_ends_are_told_each_time() -> None:
    stream = io.StringIO()
    report = Reporter(as_events=True, stream=stream)
    start = time.monotonic()
    for _ in range(2):
        for _ in report.steps("tiles", 1000):
            time.sleep(0.0004)
    took = time.monotonic() - start
    told = heard(stream)
    assert 4 <= len(told) <= 4 + took / 0.25
    assert [one["step"] for one in told if one["step"] in (0, 1000)] == [0, 1000, 0, 1000]
    assert told[0]["seconds_left"] is None
    assert told[-1]["seconds_left"] == 0.0


def test_seconds_left_are_about_right() -> None:
    stream = io.StringIO()
    report = Reporter(as_events=True, stream=stream)
    start = time.monotonic()
    for step in range(41):
        report.progress("steps", step, 100, loss=0.5)
        time.sleep(0.02)
    a_step = (time.monotonic() - start) / 41
    last = heard(stream)[-1]
    assert last["seconds_left"] == pytest.approx((100 - last["step"]) * a_step, rel=0.5)
    assert last["loss"] == 0.5


@pytest.mark.parametrize("word", ["finish", "cancel"])
def test_the_control_file_is_heard(tmp_path: Path, word: str) -> None:
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


def test_a_control_file_that_waits_is_heard_at_once(tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.write_text("cancel")
    with Reporter(quiet=True, control=control) as report:
        assert is_cancelled(report)


def test_a_gone_parent_cancels() -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_exists(parent.pid)
    with Reporter(quiet=True, parent_pid=parent.pid) as report:
        assert not is_cancelled(report)
        parent.communicate(b"\n")
        assert not process_exists(parent.pid)
        wait_for(lambda: is_cancelled(report))


def test_a_closed_stream_does_not_end_the_run() -> None:
    stream = io.StringIO()
    report = Reporter(as_events=True, stream=stream)
    stream.close()
    report.metric("loss", 1.0)
    report.metric("loss", 2.0)


CHILD = """
import sys, time
from dataclasses import dataclass
from HiEndMAECore.configuration import DoorConfig
from HiEndMAECore.reporting.front_door import open_door

def run(config, report):
    print("a library that prints")
    deaf = config.seed == 7
    for step in range(3000):
        time.sleep(0.01)
        if not deaf:
            report.progress("steps", step, 3000)
            if report.finish_requested:
                return {"stopped": "early"}
        elif step == 0:
            report.progress("steps", step, 3000)
    return {}

sys.exit(open_door(DoorConfig, run, None, door="sleep", description=""))
"""


def start_child(*argv: str) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        told = events.decode(line)
        assert told is not None
        if told["event"] == "progress":
            return child
    raise AssertionError("the child never spoke")


def ending(child: subprocess.Popen) -> tuple[int, dict, float]:
    """(exit code, last event, seconds it took); every line is an event."""
    start = time.monotonic()
    out, _ = child.communicate(timeout=20)
    told = [events.decode(line) for line in out.splitlines()]
    assert None not in told
    return child.returncode, told[-1], time.monotonic() - start


def test_a_run_is_finished_early_through_its_control_file(tmp_path: Path) -> None:
    child = start_child("--events", "--control", str(tmp_path / "control"))
    (tmp_path / "control").write_text("finish")
    code, last, took = ending(child)
    assert (code, last["event"], last["outputs"]) == (0, "finished", {"stopped": "early"})
    assert took < ENOUGH


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals; the control file does this there")
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_cancels(number: str) -> None:
    child = start_child("--events")
    child.send_signal(getattr(signal, number))
    code, last, took = ending(child)
    assert (code, last["event"], last["code"]) == (130, "failed", "cancelled")
    assert took < ENOUGH


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals; the control file does this there")
def test_a_second_signal_ends_a_run_that_does_not_listen() -> None:
    child = start_child("--events", "--seed", "7")
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert ending(child)[0] == 130


def test_a_run_outlives_a_reader_that_went_away(tmp_path: Path) -> None:
    child = start_child("--events", "--control", str(tmp_path / "control"))
    assert child.stdout is not None
    child.stdout.close()
    time.sleep(0.6)
    assert child.poll() is None
    (tmp_path / "control").write_text("finish")
    assert child.wait(timeout=10) == 0
    child.stderr.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_whole_lines_and_few_of_them() -> None:
    log = io.StringIO()
    console = Console(log)
    for step in range(500):
        console.progress("tiles", step, 500, 12.0, {"loss": 0.123456, "name": "x"})
    console.progress("tiles", 500, 500, 0.0, {})
    console.info("Done.")
    console.close()
    lines = log.getvalue().splitlines()
    assert len(lines) == 3
    assert "0/500  12 s left  loss 0.1235" in lines[0]
    assert "500/500" in lines[1]
    assert "\r" not in log.getvalue()


def test_a_terminal_gets_one_bar_drawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen = Terminal()
    console = Console(screen)
    for step in (0, 1, 2):
        console.progress("tiles", step, 4, 90.0, {"loss": 1.0})
    console.info("A sentence on its own line.")
    frames, rest = screen.getvalue().split("\n", 1)
    assert [len(frame) for frame in frames.split("\r")] == [0, 79, 79, 79]
    assert "[############------------] 2/4  1 min 30 s left" in frames
    assert rest == "A sentence on its own line.\n"


def test_a_closed_terminal_does_not_end_the_run() -> None:
    screen = Terminal()
    console = Console(screen)
    screen.close()
    console.progress("tiles", 1, 2, None, {})
    console.info("Nobody reads this.")


def test_durations_read_like_a_person_says_them() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 200, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]


def test_people_get_sentences_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(command="x") as report:
        report.warning("odd", "Something is odd.", "Look at it.")
        report.failed(InputError("bad", "The file is bad.", "Give another."))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["Warning: Something is odd. Look at it.", "The file is bad. Give another."]


def test_this_process_exists() -> None:
    assert process_exists(os.getpid())

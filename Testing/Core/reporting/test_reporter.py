"""The reporter: a run's reports reach a program as events and a person as sentences."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from HiEndMAECore.errors import InputError
from HiEndMAECore.reporting import events
from HiEndMAECore.reporting.reporter import Reporter


def read_events(stream: io.StringIO) -> list[dict]:
    received = [events.decode(line) for line in stream.getvalue().splitlines()]
    assert None not in received
    return received  # type: ignore[return-value]


def test_reporter_emits_each_report_as_an_event() -> None:
    stream = io.StringIO()
    with Reporter(command="x", as_events=True, stream=stream) as report:
        for step in report.steps("tiles", 3):
            report.metric("loss", float("nan"), step=step)
        report.preview(Path("pic.png"))
        report.warning("odd", "Überraschung.", "Look.")
        report.warning("odd", "Überraschung.", "Look.")  # an equal warning is emitted once
        report.info("For people only.")
        report.finished({"model": Path("m")})
    received = read_events(stream)
    assert [event["event"] for event in received if event["event"] != "progress"] == [
        *["metric"] * 3,
        "preview",
        "warning",
        "finished",
    ]
    steps = [event["step"] for event in received if event["event"] == "progress"]
    assert (steps[0], steps[-1]) == (0, 3)
    assert received[-1]["outputs"] == {"model": "m"}
    assert report.warnings == [{"code": "odd", "message": "Überraschung.", "advice": "Look."}]
    assert stream.getvalue().isascii()


def test_reporter_first_event_has_the_stored_name_of_the_command() -> None:
    stream = io.StringIO()
    Reporter(command="segment", as_events=True, stream=stream).started({"seed": 3})
    started = read_events(stream)[0]
    assert (started["event"], started["door"], started["config"]) == ("started", "segment", {"seed": 3})


def test_reporter_muted_emits_failures_only(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    for report in (Reporter(as_events=True, stream=stream), Reporter()):
        report.mute()
        for _ in report.steps("tiles", 2):
            report.info("A sentence.")
            report.warning("odd", "Something is odd.")
        report.failed(InputError("bad", "The file is bad."))
    assert [event["event"] for event in read_events(stream)] == ["failed"]
    assert capsys.readouterr().err.splitlines() == ["The file is bad."]


def test_progress_is_throttled_but_first_and_last_steps_are_emitted() -> None:
    stream = io.StringIO()
    report = Reporter(as_events=True, stream=stream)
    start = time.monotonic()
    for _ in range(2):
        for _ in report.steps("tiles", 1000):
            time.sleep(0.0004)
    seconds = time.monotonic() - start
    received = read_events(stream)
    assert 4 <= len(received) <= 4 + seconds / 0.25
    assert [event["step"] for event in received if event["step"] in (0, 1000)] == [0, 1000, 0, 1000]
    assert received[0]["seconds_left"] is None
    assert received[-1]["seconds_left"] == 0.0


def test_progress_seconds_left_follow_the_speed() -> None:
    stream = io.StringIO()
    report = Reporter(as_events=True, stream=stream)
    start = time.monotonic()
    for step in range(41):
        report.progress("steps", step, 100, loss=0.5)
        time.sleep(0.02)
    seconds_per_step = (time.monotonic() - start) / 41
    last = read_events(stream)[-1]
    assert last["seconds_left"] == pytest.approx((100 - last["step"]) * seconds_per_step, rel=0.5)
    assert last["loss"] == 0.5


def test_reporter_with_a_closed_stream_continues() -> None:
    stream = io.StringIO()
    report = Reporter(as_events=True, stream=stream)
    stream.close()
    report.metric("loss", 1.0)
    report.metric("loss", 2.0)


def test_reporter_without_events_writes_sentences_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter(command="x") as report:
        report.warning("odd", "Something is odd.", "Look at it.")
        report.failed(InputError("bad", "The file is bad.", "Give another."))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["Warning: Something is odd. Look at it.", "The file is bad. Give another."]

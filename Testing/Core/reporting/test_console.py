"""The console: one progress bar on a terminal, few whole lines in a log file."""

from __future__ import annotations

import io

import pytest

from HiEndMAECore.reporting.console import Console, duration


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def test_console_in_a_log_file_writes_few_whole_lines() -> None:
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


def test_console_on_a_terminal_redraws_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    console = Console(terminal)
    for step in (0, 1, 2):
        console.progress("tiles", step, 4, 90.0, {"loss": 1.0})
    console.info("A sentence on its own line.")
    frames, rest = terminal.getvalue().split("\n", 1)
    assert [len(frame) for frame in frames.split("\r")] == [0, 79, 79, 79]
    assert "[############------------] 2/4  1 min 30 s left" in frames
    assert rest == "A sentence on its own line.\n"


def test_console_with_a_closed_terminal_continues() -> None:
    terminal = Terminal()
    console = Console(terminal)
    terminal.close()
    console.progress("tiles", 1, 2, None, {})
    console.info("Nobody reads this.")


def test_duration_uses_two_units() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 200, 7500)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
        "2 h 5 min",
    ]

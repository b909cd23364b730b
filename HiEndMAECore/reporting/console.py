"""Progress bars and sentences for a person, on standard error."""

from __future__ import annotations

import shutil
import time
from typing import Any, TextIO

_BAR_WIDTH = 24  # characters
_LOG_INTERVAL_SECONDS = 15.0


class Console:
    """A progress bar that is redrawn in place on a terminal; in a log file, one line every quarter of a minute.

    Args:
        stream: Where to write.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = bool(getattr(stream, "isatty", lambda: False)())
        self._unfinished_line = False
        self._last_line = (0.0, "")  # (time in seconds, stage)

    def progress(self, stage: str, step: int, total: int, seconds_left: float | None, values: dict[str, Any]) -> None:
        """Draw the progress bar of a stage.

        Args:
            stage: The name of the stage.
            step: Steps that are done.
            total: Steps of the whole stage.
            seconds_left: Expected remaining time, if it is known.
            values: Further values; the numbers among them are shown.
        """
        done = total == 0 or step >= total
        now = time.monotonic()
        last_time, last_stage = self._last_line
        if not self._is_terminal and not done and last_stage == stage and now - last_time < _LOG_INTERVAL_SECONDS:
            return
        self._last_line = (now, stage)
        text = _bar(stage, step, total)
        if seconds_left is not None and not done:
            text += f"  {duration(seconds_left)} left"
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        text += "".join(f"  {name} {_number(value)}" for name, value in numbers.items())
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            self._write("\r" + text[:width].ljust(width))
            self._unfinished_line = True
            if done:
                self.close()
        else:
            self._write(text + "\n")

    def info(self, text: str) -> None:
        """Write one sentence on a line of its own."""
        self.close()
        self._write(text + "\n")

    def close(self) -> None:
        """End the line of an unfinished progress bar."""
        if self._unfinished_line:
            self._write("\n")
            self._unfinished_line = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a closed terminal must not end the run


def duration(seconds: float) -> str:
    """Return a duration in words: '45 s', '3 min 20 s', '2 h 5 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _bar(stage: str, step: int, total: int) -> str:
    """Return the stage, the bar and the counts as text."""
    share = 1.0 if total == 0 else min(step / total, 1.0)
    filled = round(share * _BAR_WIDTH)
    return f"{stage:<22} [{'#' * filled}{'-' * (_BAR_WIDTH - filled)}] {step}/{total}"


def _number(value: float) -> str:
    """Return a number with at most four significant digits; whole numbers as they are."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"

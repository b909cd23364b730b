"""Bars and sentences for a person at a terminal, on standard error."""

from __future__ import annotations

import shutil
import time
from typing import Any, TextIO

_BAR = 24
_QUIET_EVERY = 15.0  # seconds between lines when nobody watches a terminal (a log file)


class Console:
    """Draws one bar in place on a terminal; in a log file, one line every quarter of a minute."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = bool(getattr(stream, "isatty", lambda: False)())
        self._open = False
        self._last = (0.0, "")

    def progress(self, stage: str, step: int, total: int, left: float | None, values: dict[str, Any]) -> None:
        """Redraw the bar of `stage`; `left` is seconds."""
        done = total == 0 or step >= total
        now = time.monotonic()
        if not self._live and not done and self._last[1] == stage and now - self._last[0] < _QUIET_EVERY:
            return
        self._last = (now, stage)
        share = 1.0 if total == 0 else min(step / total, 1.0)
        full = round(share * _BAR)
        bar = "#" * full + "-" * (_BAR - full)
        text = f"{stage:<22} [{bar}] {step}/{total}"
        if left is not None and not done:
            text += f"  {duration(left)} left"
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        text += "".join(f"  {name} {_number(value)}" for name, value in numbers.items())
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._write("\r" + text[:width].ljust(width))
            self._open = True
            if done:
                self.close()
        else:
            self._write(text + "\n")

    def info(self, text: str) -> None:
        """One sentence on a line of its own."""
        self.close()
        self._write(text + "\n")

    def close(self) -> None:
        """End an unfinished bar's line."""
        if self._open:
            self._write("\n")
            self._open = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass  # the terminal was closed: a run does not die of that


def duration(seconds: float) -> str:
    """'45 s', '3 min 20 s', '2 h 5 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"

"""Helpers to run the commands as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from HiEndMAECore.reporting import events

REPOSITORY = Path(__file__).resolve().parents[2]


def command_line(name: str, *arguments: object) -> list[str]:
    """Return the command line of a command of the engine."""
    return [sys.executable, "-m", f"HiEndMAECore.{name}", *map(str, arguments)]


def start(*arguments: str) -> subprocess.Popen:
    """Start a process with pipes for its output."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUTF8": "1"},
    )


def run(name: str, *arguments: object, code: int = 0) -> tuple[list[dict], str]:
    """Run a command with --events, and return its events and its standard error. Every line must be an event."""
    process = start(*command_line(name, *arguments, "--events"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    received = [events.decode(line) for line in out.splitlines()]
    assert None not in received, out
    # A wrong argument may be found before the run starts, or by the run.
    assert received[0]["event"] == "started" or (code == 2 and len(received) == 1)  # type: ignore[index]
    assert received[-1]["event"] == ("finished" if code == 0 else "failed")  # type: ignore[index]
    return received, err  # type: ignore[return-value]


def finetune_arguments(patients: Path, output: Path, *options: object, case: str = "p1") -> tuple[object, ...]:
    """Return the arguments of `finetune` for one patient on the CPU."""
    image, label = patients / f"scans/{case}_0000.nii.gz", patients / f"labels/{case}.nii.gz"
    return ("--image", image, "--label", label, "--output", output, "--device", "cpu", *options)

"""Running a command: whatever happens, the exit code and the last event say what it was."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from HiEndMAECore import errors
from HiEndMAECore.cli.options import CommandConfig, option
from HiEndMAECore.cli.runner import run_command
from HiEndMAECore.errors import classify_exception
from HiEndMAECore.reporting import events


@dataclass(frozen=True, kw_only=True)
class Small(CommandConfig):
    """A config with one required option."""

    output: Path = option(help="Folder to write.", required=True)


def run_small(run: Callable, *argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict], str]:
    """Return (exit code, events, standard error) of a run with --events."""
    code = run_command(Small, run, ["--output", "x", "--events", *argv], command="small", description="Small.")
    out, err = capsys.readouterr()
    received = [events.decode(line) for line in out.splitlines()]
    assert None not in received
    return code, received, err


def raising(error: BaseException) -> Callable:
    def run(config: Small, report: object) -> dict:
        raise error

    return run


def disk_full_error() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", "/disk/file")


@pytest.mark.parametrize(
    ("error", "exit_code", "code"),
    [
        (errors.UsageError("u", "m", "a"), 2, "u"),
        (errors.InputError("i", "m", "a"), 3, "i"),
        (errors.OutOfMemoryError("o", "m", "a"), 4, "o"),
        (errors.MissingDependencyError.of("torch", "to compute"), 5, "dependency_missing"),
        (errors.Cancelled(), 130, "cancelled"),
        (errors.HiEndMAEError("h", "m", "a"), 1, "h"),
        (ModuleNotFoundError("No module named 'nibabel.x'", name="nibabel.x"), 5, "dependency_missing"),
        (ModuleNotFoundError("No module named 'HiEndMAECore.x'", name="HiEndMAECore.x"), 1, "internal_fault"),
        (MemoryError(), 4, "out_of_memory"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), 4, "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 4, "out_of_memory"),
        (RuntimeError("a memory of shapes"), 1, "internal_fault"),
        (disk_full_error(), 3, "disk_full"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked"), 3, "not_allowed"),
        (ValueError("classes must be positive, not -1"), 1, "internal_fault"),
        (KeyboardInterrupt(), 130, "cancelled"),
    ],
)
def test_run_command_exception_gives_its_exit_code_and_event(
    error: BaseException, exit_code: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    returned, received, err = run_small(raising(error), capsys=capsys)
    assert (returned, received[-1]["event"], received[-1]["code"]) == (exit_code, "failed", code)
    assert [event["event"] for event in received] == ["started", "failed"]
    assert ("Traceback" in err) == (code == "internal_fault")
    assert received[-1]["message"]


def test_run_command_cancelled_under_torchrun_returns_0(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun takes any other exit code for a crash, and restarts the processes with --max-restarts."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    returned, received, _ = run_small(raising(errors.Cancelled()), capsys=capsys)
    assert (returned, received[-1]["code"]) == (0, "cancelled")
    assert run_small(raising(errors.InputError("i", "m", "a")), capsys=capsys)[0] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGTERM")
def test_run_command_second_sigterm_lets_the_run_save(capsys: pytest.CaptureFixture[str]) -> None:
    saved = []

    def run(config: Small, report) -> dict:
        for number in (signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        saved.append(True)
        report.check()
        return {}

    assert run_small(run, capsys=capsys)[0] == 130
    assert saved


def test_run_command_missing_module_names_its_package(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Small, report: object) -> dict:
        import package_that_is_absent.part  # noqa: F401

        return {}

    code, received, _ = run_small(run, capsys=capsys)
    assert code == 5
    assert "'package_that_is_absent'" in received[-1]["message"]
    assert "pip install package_that_is_absent" in received[-1]["advice"]


def test_run_command_failed_allocation_returns_4(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Small, report: object) -> dict:
        return {"x": torch.empty(1 << 60, dtype=torch.uint8)}

    assert run_small(run, capsys=capsys)[0] == 4


def test_run_command_success_emits_config_and_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Small, report: object) -> dict:
        print("a library that prints")
        return {"result": config.output / "r.json"}

    code, received, err = run_small(run, "--seed", "3", capsys=capsys)
    assert code == 0
    assert received[0]["config"] == {
        "device": "auto",
        "seed": 3,
        "events": True,
        "control": None,
        "parent_pid": None,
        "output": "x",
    }
    assert received[-1]["outputs"] == {"result": str(Path("x/r.json"))}
    assert "a library that prints" in err  # not among the events


@pytest.mark.parametrize(
    "argv", [["--nonsense"], [], ["--output", "x", "--device", "abacus"], ["--config", "absent.json"]]
)
def test_run_command_wrong_arguments_return_2_before_the_start(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    never = raising(AssertionError("must not run"))
    assert run_command(Small, never, ["--events", *argv], command="small", description="") == 2
    received = [events.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert [event and event["event"] for event in received] == ["failed"]
    assert run_command(Small, never, argv, command="small", description="") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip()


def test_run_command_help_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(Small, raising(AssertionError()), ["--help"], command="small", description="About small things.")
    assert caught.value.code == 0
    assert "About small things." in capsys.readouterr().out


def test_typed_error_survives_pickling() -> None:
    for error in (errors.InputError("c", "Message.", "Advice."), errors.Cancelled(), errors.UsageError("c", "m")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.code, copy.message, copy.advice) == (
            type(error),
            error.code,
            error.message,
            error.advice,
        )
    assert str(errors.InputError("c", "Message.", "Advice.")) == "Message. Advice."


def test_classify_exception_ordinary_error_returns_none() -> None:
    assert classify_exception(ValueError("out of memory slots in the table")) is None
    assert classify_exception(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_run_command_control_file_named_in_config_file_cancels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "control").write_text("cancel")
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"control": str(tmp_path / "control")}))

    def run(config: Small, report) -> dict:
        report.check()
        return {}

    code, received, _ = run_small(run, "--config", str(config), capsys=capsys)
    assert (code, received[-1]["code"]) == (130, "cancelled")


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses GNU OpenMP on Linux only")
@pytest.mark.parametrize(
    ("variables", "spin_count"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_limit_openmp_spinning_respects_the_environment(variables: dict[str, str], spin_count: str) -> None:
    """OpenMP itself prints its settings when torch loads it."""
    line = "from HiEndMAECore.cli.runner import limit_openmp_spinning; limit_openmp_spinning(); import torch"
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **variables}
    process = subprocess.run([sys.executable, "-c", line], env=environment, check=True, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{spin_count}'" in process.stderr

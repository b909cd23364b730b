"""Whatever happens in a run, the exit code and the last event say what it was."""

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
    """One required option."""

    output: Path = option(help="Where to.", required=True)


def leave(run: Callable, *argv: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict], str]:
    """(exit code, events, standard error) of a run with --events."""
    code = run_command(Small, run, ["--output", "x", "--events", *argv], command="small", description="Small.")
    out, err = capsys.readouterr()
    told = [events.decode(line) for line in out.splitlines()]
    assert None not in told
    return code, told, err


def raising(error: BaseException) -> Callable:
    def run(config: Small, report: object) -> dict:
        raise error

    return run


def no_space() -> OSError:
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
        (no_space(), 3, "disk_full"),
        (PermissionError(errno.EACCES, "Permission denied", "/locked"), 3, "not_allowed"),
        (ValueError("classes must be positive, not -1"), 1, "internal_fault"),
        (KeyboardInterrupt(), 130, "cancelled"),
    ],
)
def test_each_end_has_its_exit_code_and_event(
    error: BaseException, exit_code: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left, told, err = leave(raising(error), capsys=capsys)
    assert (left, told[-1]["event"], told[-1]["code"]) == (exit_code, "failed", code)
    assert [one["event"] for one in told] == ["started", "failed"]
    assert ("Traceback" in err) == (code == "internal_fault")
    assert told[-1]["message"]


def test_what_torchrun_cancels_it_does_not_start_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any code but 0 is a crash to it, and --max-restarts would begin anew."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    left, told, _ = leave(raising(errors.Cancelled()), capsys=capsys)
    assert (left, told[-1]["code"]) == (0, "cancelled")
    assert leave(raising(errors.InputError("i", "m", "a")), capsys=capsys)[0] == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGTERM")
def test_a_second_sigterm_lets_the_run_save(capsys: pytest.CaptureFixture[str]) -> None:
    saved = []

    def run(config: Small, report) -> dict:
        for number in (signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        time.sleep(0.05)
        saved.append(True)
        report.check()
        return {}

    assert leave(run, capsys=capsys)[0] == 130
    assert saved


def test_a_missing_module_is_named_by_its_package(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Small, report: object) -> dict:
        import not_a_package_of_ours.part  # noqa: F401

        return {}

    code, told, _ = leave(run, capsys=capsys)
    assert code == 5
    assert "'not_a_package_of_ours'" in told[-1]["message"]
    assert "pip install not_a_package_of_ours" in told[-1]["advice"]


def test_a_real_allocation_that_fails_is_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Small, report: object) -> dict:
        return {"x": torch.empty(1 << 60, dtype=torch.uint8)}

    assert leave(run, capsys=capsys)[0] == 4


def test_a_run_that_works_ends_with_its_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Small, report: object) -> dict:
        print("a library that prints")
        return {"result": config.output / "r.json"}

    code, told, err = leave(run, "--seed", "3", capsys=capsys)
    assert code == 0
    assert told[0]["config"] == {
        "device": "auto",
        "seed": 3,
        "events": True,
        "control": None,
        "parent_pid": None,
        "output": "x",
    }
    assert told[-1]["outputs"] == {"result": str(Path("x/r.json"))}
    assert "a library that prints" in err  # not among the events


@pytest.mark.parametrize(
    "argv", [["--nonsense"], [], ["--output", "x", "--device", "abacus"], ["--config", "absent.json"]]
)
def test_a_wrong_line_fails_with_2_before_it_starts(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    never = raising(AssertionError("must not run"))
    assert run_command(Small, never, ["--events", *argv], command="small", description="") == 2
    told = [events.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert [one and one["event"] for one in told] == ["failed"]
    assert run_command(Small, never, argv, command="small", description="") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip()


def test_help_is_printed_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run_command(Small, raising(AssertionError()), ["--help"], command="small", description="About small things.")
    assert left.value.code == 0
    assert "About small things." in capsys.readouterr().out


def test_errors_cross_process_borders_whole() -> None:
    for error in (errors.InputError("c", "Message.", "Advice."), errors.Cancelled(), errors.UsageError("c", "m")):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), back.code, back.message, back.advice) == (
            type(error),
            error.code,
            error.message,
            error.advice,
        )
    assert str(errors.InputError("c", "Message.", "Advice.")) == "Message. Advice."


def test_an_ordinary_error_is_not_mistaken_for_another() -> None:
    assert classify_exception(ValueError("out of memory slots in the table")) is None
    assert classify_exception(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


def test_a_control_file_in_a_config_file_cancels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "control").write_text("cancel")
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"control": str(tmp_path / "control")}))

    def run(config: Small, report) -> dict:
        report.check()
        return {}

    code, told, _ = leave(run, "--config", str(config), capsys=capsys)
    assert (code, told[-1]["code"]) == (130, "cancelled")


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP is torch's on Linux alone")
@pytest.mark.parametrize(
    ("chosen", "found"), [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_threads_do_not_keep_a_busy_processor_from_one_another(chosen: dict[str, str], found: str) -> None:
    """What OpenMP itself says when torch loads it."""
    line = "from HiEndMAECore.cli.runner import limit_openmp_spinning; limit_openmp_spinning(); import torch"
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **chosen}
    told = subprocess.run([sys.executable, "-c", line], env=environment, check=True, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{found}'" in told.stderr

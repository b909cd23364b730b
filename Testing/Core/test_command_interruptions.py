"""Commands that are finished early, cancelled or killed, and the runs that continue them."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from command_runs import command_line, finetune_arguments, run, start

from HiEndMAECore.models.folder import read_description, read_weights
from HiEndMAECore.reporting import events
from HiEndMAECore.training.training_log import read_log, step_records


@pytest.mark.parametrize(("word", "code"), [("finish", 0), ("cancel", 130)])
def test_finetune_control_file_ends_the_run(patients: Path, tmp_path: Path, word: str, code: int) -> None:
    control = tmp_path / "control"
    options = ("--steps", 5000, "--events", "--control", control)
    process = start(*command_line("finetune", *finetune_arguments(patients, tmp_path / "model", *options)))
    assert process.stdout is not None
    last: dict = {}
    for line in process.stdout:
        last = events.decode(line) or {}
        if last["event"] == "progress" and last["stage"] == "learning" and not control.exists():
            control.write_text(word)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert last["event"] == ("finished" if code == 0 else "failed")
    assert (tmp_path / "model").exists() == (code == 0)
    if code == 0:
        training = read_description(tmp_path / "model").training
        assert 0 < training["steps"] < training["steps_planned"] == 5000


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_finetune_killed_while_writing_leaves_a_complete_model_or_none(patients: Path, tmp_path: Path) -> None:
    """The process is killed at several moments around the writing of the model."""
    arguments = finetune_arguments(patients, tmp_path / "model", "--steps", 2)
    for delay in (0.0, 0.03, 0.06, 0.1, 0.15):
        process = start(*command_line("finetune", *arguments, "--events"))
        assert process.stdout is not None
        for line in process.stdout:
            event = events.decode(line) or {}
            if event["event"] == "progress" and event["stage"] == "self-check" and event["step"] == event["total"]:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
        assert process.returncode == -signal.SIGKILL or process.returncode == 0
        if (tmp_path / "model").exists():
            assert read_weights(tmp_path / "model")
    run("finetune", *arguments)  # the files of the killed runs do not disturb it
    assert read_weights(tmp_path / "model")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_pretrain_sigterm_saves_a_checkpoint_and_resume_continues(patients: Path, tmp_path: Path) -> None:
    settings = (
        "--data", patients / "scans", "--output", tmp_path / "run", "--variant", "hi_end_mae_vit_tiny_8p", "--spacing", 8, 8, 8,
        "--batch-size", 2, "--crop", 32, 32, 32, "--steps", 60, "--device", "cpu",
    )  # fmt: skip
    process = start(*command_line("pretrain", *settings, "--events"))
    assert process.stdout is not None
    for line in process.stdout:
        event = events.decode(line) or {}
        if event["event"] == "progress" and event["stage"] == "pretraining":
            process.send_signal(signal.SIGTERM)
            break
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (events.decode(out.splitlines()[-1]) or {})["code"] == "cancelled"
    run("pretrain", *settings, code=2)  # without --resume it is refused
    received, _ = run("pretrain", *settings, "--resume")
    steps = [e["step"] for e in received if e["event"] == "progress" and e["stage"] == "pretraining"]
    assert steps[0] > 0  # a new run would report step 0
    assert steps[-1] == 60


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_pretrain_killed_and_resumed_has_the_losses_of_an_uninterrupted_run(patients: Path, tmp_path: Path) -> None:
    settings = (
        "--variant", "hi_end_mae_vit_tiny_8p", "--batch-size", 2, "--crop", 32, 32, 32, "--steps", 30, "--device", "cpu",
        "--snapshot-minutes", 0.001,
    )  # fmt: skip
    run("prepare", "--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 8, 8, 8)
    run("pretrain", "--data", tmp_path / "store", "--output", tmp_path / "whole", *settings)
    killed = ("--data", tmp_path / "store", "--output", tmp_path / "killed", *settings)
    process = start(*command_line("pretrain", *killed))
    while process.poll() is None and not list((tmp_path / "killed").glob("snapshots/step-*[1-9].safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    log = tmp_path / "killed" / "log.jsonl"
    with log.open("a", encoding="utf-8") as file:
        file.write('{"step": 29, "lo')  # a killed process may leave half a line
    run("pretrain", *killed, "--resume")
    assert [(s.step, s.loss) for s in step_records(read_log(tmp_path / "killed"))] == [
        (s.step, s.loss) for s in step_records(read_log(tmp_path / "whole"))
    ]

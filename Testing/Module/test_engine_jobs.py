"""Jobs that go wrong: each ends in a plain sentence, and leaves no process behind."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import Heart, group_of, wait

pytestmark = pytest.mark.usefixtures("app")

FINISHED = json.dumps({"v": 1, "event": "finished", "outputs": {}})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """`run(source)`: a started job whose engine is the Python program `source`."""
    from HiEndMAESegmentationLib.engine.jobs import Job
    from stand_in.application import use_engine

    from HiEndMAECore.doctor import DoctorConfig

    def start(source: str, heard: list[Any] | None = None) -> Job:
        program = tmp_path / "engine Ä.py"
        program.write_text(source, encoding="utf-8")
        use_engine(sys.executable, str(program))
        ends: list[Any] = []
        job = Job("doctor", DoctorConfig(), on_event=(heard if heard is not None else []).append, on_end=ends.append)
        job.ends = ends
        job.start()
        return job

    return start


def test_rubbish_is_kept_in_the_log_and_does_no_harm(run: Callable[..., Any]) -> None:
    heard: list[Any] = []
    source = f"""
import sys
sys.stdout.buffer.write(b"\\xff\\xfe rubbish\\n" + b"{{" * 100000 + b"\\n" + b'{{"v": 1, "event": "progress"}}\\n')
sys.stdout.buffer.write(b'{{"v": 1, "event": "metric", "name": "loss", "value": 1}}\\n' + {FINISHED!r}.encode() + b"\\n")
sys.stderr.write("a warning of some library\\n")
"""
    job = run(source, heard)
    wait(lambda: not job.running)
    assert [end.state for end in job.ends] == ["finished"]
    assert [event["event"] for event in heard] == ["metric"]
    log = job.log.read_text(encoding="utf-8")
    assert "rubbish" in log
    assert "a warning of some library" in log


def test_an_engine_that_says_nothing_was_killed(run: Callable[..., Any]) -> None:
    job = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    wait(lambda: not job.running)
    assert (job.end.state, job.end.code, job.end.exit_code) == ("killed", "killed", 1)
    assert "memory" in job.end.advice


def test_a_stubborn_engine_and_its_children_are_ended(run: Callable[..., Any]) -> None:
    """It ignores the control file and SIGTERM, and has a child of its own."""
    source = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
time.sleep(100)
"""
    job = run(source)
    wait(lambda: len(group_of(job.pid)) == 3)
    asked = time.monotonic()
    job.cancel()
    wait(lambda: not job.running)
    wait(lambda: not group_of(job.pid))
    assert time.monotonic() - asked < 5
    assert job.end.state == "cancelled"


def test_a_killed_launcher_takes_the_engine_along(run: Callable[..., Any]) -> None:
    import os
    import signal

    job = run("import time; time.sleep(100)")
    wait(lambda: len(group_of(job.pid)) == 2)
    os.kill(job.pid, signal.SIGKILL)
    wait(lambda: not job.running)
    wait(lambda: not group_of(job.pid), 5)
    assert job.end.state == "killed"


def test_a_flood_of_events_leaves_the_main_thread_free(run: Callable[..., Any]) -> None:
    line = json.dumps({"v": 1, "event": "metric", "name": "x", "value": 1})
    heard: list[Any] = []
    job = run(f"print(({line!r} + chr(10)) * 30000 + {FINISHED!r})", heard)
    with Heart() as heart:
        wait(lambda: not job.running)
    assert len(heard) == 30000
    assert heart.longest < 0.1


def test_without_pythonslicer_the_job_ends_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from HiEndMAESegmentationLib.engine.jobs import Job

    from HiEndMAECore.doctor import DoctorConfig

    monkeypatch.setenv("PATH", "")
    ends: list[Any] = []
    Job("doctor", DoctorConfig(), on_event=ends.append, on_end=ends.append).start()
    assert [(end.state, end.code) for end in ends] == [("failed", "python_absent")]


def test_files_that_cannot_be_written_end_the_job_in_a_sentence(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the place of the folder of logs stands for whatever keeps them from being written."""
    import slicer
    from HiEndMAESegmentationLib.engine import jobs

    from HiEndMAECore.doctor import DoctorConfig

    ends: list[Any] = []
    job = jobs.Job("doctor", DoctorConfig(), on_event=print, on_end=ends.append)
    in_the_way = Path(slicer.app.temporaryPath) / "in the way"
    in_the_way.write_text("")
    job.log = in_the_way / "x.log"
    job.start()
    in_the_way.unlink()
    with monkeypatch.context() as tidied:
        tidied.setattr(type(slicer.app), "temporaryPath", property(lambda _self: str(in_the_way / "gone")))
        jobs.Job("doctor", DoctorConfig(), on_event=print, on_end=ends.append).start()
    assert [end.code for end in ends] == ["files_failed", "files_failed"]
    assert not job.running


def test_closing_slicer_ends_the_job(run: Callable[..., Any]) -> None:
    job = run("import time; time.sleep(100)")
    wait(lambda: len(group_of(job.pid)) == 2)
    job.kill()
    wait(lambda: not group_of(job.pid), 5)
    assert job.ends == []


def test_old_logs_make_room(run: Callable[..., Any]) -> None:
    from HiEndMAESegmentationLib.engine import jobs

    for _ in range(jobs._LOGS_KEPT + 5):
        log = jobs._new_log("doctor")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    assert len(list(log.parent.glob("*.log"))) <= jobs._LOGS_KEPT

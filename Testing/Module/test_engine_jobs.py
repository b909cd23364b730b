"""Jobs that fail: each ends with a message, and leaves no process."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import MainThreadTimer, group_of, wait

pytestmark = pytest.mark.usefixtures("app")

FINISHED = json.dumps({"v": 1, "event": "finished", "outputs": {}})


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Return `run(source)`, which starts a job whose engine is the Python program `source`."""
    from HiEndMAESegmentationLib.engine.jobs import Job
    from stand_in.application import use_engine

    from HiEndMAECore.doctor import DoctorConfig

    def start(source: str, events: list[Any] | None = None) -> Job:
        program = tmp_path / "engine Ä.py"
        program.write_text(source, encoding="utf-8")
        use_engine(sys.executable, str(program))
        ends: list[Any] = []
        job = Job("doctor", DoctorConfig(), on_event=(events if events is not None else []).append, on_end=ends.append)
        job.ends = ends
        job.start()
        return job

    return start


def test_job_with_output_that_is_no_event_writes_it_to_the_log(run: Callable[..., Any]) -> None:
    events: list[Any] = []
    source = f"""
import sys
sys.stdout.buffer.write(b"\\xff\\xfe garbage\\n" + b"{{" * 100000 + b"\\n" + b'{{"v": 1, "event": "progress"}}\\n')
sys.stdout.buffer.write(b'{{"v": 1, "event": "metric", "name": "loss", "value": 1}}\\n' + {FINISHED!r}.encode() + b"\\n")
sys.stderr.write("a warning of a library\\n")
"""
    job = run(source, events)
    wait(lambda: not job.running)
    assert [end.state for end in job.ends] == ["finished"]
    assert [event["event"] for event in events] == ["metric"]
    log = job.log.read_text(encoding="utf-8")
    assert "garbage" in log
    assert "a warning of a library" in log


def test_job_without_a_last_event_ends_as_killed(run: Callable[..., Any]) -> None:
    job = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    wait(lambda: not job.running)
    assert (job.end.state, job.end.code, job.end.exit_code) == ("killed", "killed", 1)
    assert "memory" in job.end.advice


def test_cancelled_job_that_ignores_requests_is_ended_with_its_children(run: Callable[..., Any]) -> None:
    """The engine ignores the control file and SIGTERM, and has a child of its own."""
    source = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
time.sleep(100)
"""
    job = run(source)
    wait(lambda: len(group_of(job.pid)) == 3)
    start = time.monotonic()
    job.cancel()
    wait(lambda: not job.running)
    wait(lambda: not group_of(job.pid))
    assert time.monotonic() - start < 5
    assert job.end.state == "cancelled"


def test_killed_launcher_ends_the_engine_too(run: Callable[..., Any]) -> None:
    import os
    import signal

    job = run("import time; time.sleep(100)")
    wait(lambda: len(group_of(job.pid)) == 2)
    os.kill(job.pid, signal.SIGKILL)
    wait(lambda: not job.running)
    wait(lambda: not group_of(job.pid), 5)
    assert job.end.state == "killed"


def test_job_with_many_events_does_not_block_the_main_thread(run: Callable[..., Any]) -> None:
    line = json.dumps({"v": 1, "event": "metric", "name": "x", "value": 1})
    events: list[Any] = []
    job = run(f"print(({line!r} + chr(10)) * 30000 + {FINISHED!r})", events)
    with MainThreadTimer() as timer:
        wait(lambda: not job.running)
    assert len(events) == 30000
    assert timer.longest < 0.1


def test_job_without_pythonslicer_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from HiEndMAESegmentationLib.engine.jobs import Job

    from HiEndMAECore.doctor import DoctorConfig

    monkeypatch.setenv("PATH", "")
    ends: list[Any] = []
    Job("doctor", DoctorConfig(), on_event=ends.append, on_end=ends.append).start()
    assert [(end.state, end.code) for end in ends] == [("failed", "python_absent")]


def test_job_whose_files_cannot_be_written_ends_with_an_error(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands where the folder of logs should be."""
    import slicer
    from HiEndMAESegmentationLib.engine import jobs

    from HiEndMAECore.doctor import DoctorConfig

    ends: list[Any] = []
    job = jobs.Job("doctor", DoctorConfig(), on_event=print, on_end=ends.append)
    blocking_file = Path(slicer.app.temporaryPath) / "blocking file"
    blocking_file.write_text("")
    job.log = blocking_file / "x.log"
    job.start()
    blocking_file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(type(slicer.app), "temporaryPath", property(lambda _self: str(blocking_file / "gone")))
        jobs.Job("doctor", DoctorConfig(), on_event=print, on_end=ends.append).start()
    assert [end.code for end in ends] == ["files_failed", "files_failed"]
    assert not job.running


def test_kill_ends_the_processes_without_calling_on_end(run: Callable[..., Any]) -> None:
    job = run("import time; time.sleep(100)")
    wait(lambda: len(group_of(job.pid)) == 2)
    job.kill()
    wait(lambda: not group_of(job.pid), 5)
    assert job.ends == []


def test_new_log_removes_the_oldest_logs(run: Callable[..., Any]) -> None:
    from HiEndMAESegmentationLib.engine import jobs

    for _ in range(jobs._LOGS_KEPT + 5):
        log = jobs._new_log("doctor")
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    assert len(list(log.parent.glob("*.log"))) <= jobs._LOGS_KEPT

"""The table: appended lines survive kills and other processes, claims are exclusive, splits and budgets do not mix."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bare_python import REPOSITORY

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.experiments.table import Table, read_results


def line(job: str = "j1", **values: Any) -> dict[str, Any]:
    fields = {"job": job, "status": "done", "arm": "a", "region": "r", "split": "tune", "training_case": "t", "seed": 0}
    return {**fields, "budget": {"steps": 5}, **values}


def test_table_ignores_the_incomplete_line_of_a_killed_process(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.jsonl")
    table.append(line("j1"))
    with table.path.open("a") as file:
        file.write('{"job": "j2", "status": "do')
    assert table.finished_ids() == {"j1"}
    table.append(line("j3"))
    assert table.finished_ids() == {"j1", "j3"}
    assert table.path.read_text().count("\n") == 3


def test_failed_line_is_not_finished_and_is_replaced_by_a_newer_one(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.jsonl")
    table.append(line("j1", status="failed", message="broken"))
    assert table.finished_ids() == set()
    with pytest.raises(InputError) as raised:
        read_results([table.path])
    assert raised.value.code == "table_empty"
    table.append(line("j1"))
    assert [found["status"] for found in read_results([table.path])] == ["done"]


APPEND = """
import sys
from pathlib import Path
from HiEndMAECore.experiments.table import Table
table = Table(Path(sys.argv[1]))
for index in range(40):
    table.append({"job": f"{sys.argv[2]}-{index}", "status": "done", "arm": "a" * 5000, "region": "r", "split": "tune",
                  "training_case": "t", "seed": 0, "budget": None})
"""


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    processes = [subprocess.Popen([sys.executable, "-c", APPEND, path, name], cwd=REPOSITORY) for name in "xy"]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert len([json.loads(text) for text in path.read_text().splitlines()]) == 80


CLAIM = """
import sys
from pathlib import Path
from HiEndMAECore.experiments.table import Table
with Table(Path(sys.argv[1])).claim("job") as is_held:
    print(is_held, flush=True)
    sys.stdin.readline()
"""


def test_claim_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", CLAIM, str(path)], cwd=REPOSITORY, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline().strip() == "True"
    table = Table(path)
    with table.claim("job") as is_held, table.claim("another job") as other_is_held:
        assert (is_held, other_is_held) == (False, True)
    process.kill()
    process.wait()
    with table.claim("job") as is_held:
        assert is_held
    process.stdin.close()
    process.stdout.close()


def test_splits_and_budgets_are_not_mixed(tmp_path: Path) -> None:
    tune, test = Table(tmp_path / "tune.jsonl"), Table(tmp_path / "test.jsonl")
    tune.append(line("j1"))
    tune.append(line("script", budget=None))
    test.append(line("j2", split="test"))
    for refused in (lambda: tune.check_split("test"), lambda: read_results([tune.path, test.path])):
        with pytest.raises(UsageError) as raised:
            refused()
        assert raised.value.code == "splits_mixed"
    tune.check_split("tune")
    tune.append(line("j3", budget={"steps": 50}))
    with pytest.raises(UsageError) as raised:
        read_results([tune.path])
    assert raised.value.code == "budgets_mixed"
    assert {found["job"] for found in read_results([tune.path], budget={"steps": 50})} == {"script", "j3"}


def test_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n')
    for path in (tmp_path / "t.jsonl", tmp_path / "absent.jsonl"):
        with pytest.raises(InputError) as raised:
            read_results([path])
        assert raised.value.code == "table_unreadable"

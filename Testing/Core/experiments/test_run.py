"""Jobs as real child processes: the line of a job, an interrupted table, claims, failures, and equal processor time."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import command_line, run, start
from experiment_files import select, write_dataset, write_engine, write_plan, write_script

from HiEndMAECore.errors import Cancelled
from HiEndMAECore.experiments.arms import Machine
from HiEndMAECore.experiments.job_list import list_jobs
from HiEndMAECore.experiments.plan import Budget, read_plan
from HiEndMAECore.experiments.run import run_jobs
from HiEndMAECore.experiments.table import Table, read_lines
from HiEndMAECore.io.readers import read_label_map
from HiEndMAECore.io.writers import write_label_map
from HiEndMAECore.reporting.reporter import Reporter

Arms = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "Dataset1")


@pytest.fixture
def copy_arm(tmp_path: Path) -> Arms:
    """Return a function that makes an arm whose script copies labels; `runs.txt` has a line for each run."""
    script, runs = write_script(tmp_path / "script")

    def make(name: str = "copy", *options: str) -> dict[str, Any]:
        return {"name": name, "script": [str(script), "--runs", str(runs), *options]}

    return make


def runs_of(tmp_path: Path) -> int:
    file = tmp_path / "script" / "runs.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def compare(plan: Path, table: Path, *options: object, code: int = 0) -> list[dict]:
    return run("compare", "--plan", plan, "--output", table, *options, code=code)[0]


def test_line_of_a_script_has_scores_machine_and_settings(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    plan, table = write_plan(tmp_path / "plan.json", dataset, [copy_arm()]), tmp_path / "table.jsonl"
    compare(plan, table, "--cases", "p1", "--seed", 3)
    (line,) = read_lines(table)
    assert (line["status"], line["arm"], line["region"], line["training_case"]) == ("done", "copy", "phantoms", "p1")
    assert (line["split"], line["budget"], line["steps"], line["cpu_seconds"]) == ("tune", None, None, 0.0)
    assert line["apply_seconds_per_scan"] > 0
    assert (line["threads"], line["engine"]["version"]) == (1, "0.1.0")
    assert line["processor"]
    assert str(tmp_path) not in json.dumps({key: line[key] for key in line if key != "settings"})
    scores = line["cases"]["p3"]
    reference = read_label_map(dataset / "labelsTr" / "p3.nii.gz")
    copied = read_label_map(dataset / "labelsTr" / "p1.nii.gz")
    names = json.loads((dataset / "dataset.json").read_text())["labels"]
    assert set(scores) == {name for name, value in names.items() if value in np.unique(reference.array)} - {
        "background"
    }
    for name, score in scores.items():
        mask, other = reference.array == names[name], copied.array == names[name]
        assert score["dice"] == pytest.approx(2 * (mask & other).sum() / (mask.sum() + other.sum()))
        assert score["reference_ml"] == pytest.approx(mask.sum() * 0.512, abs=1e-3)
    missed = [name for name, score in scores.items() if score["dice"] == 0 and score["reference_ml"] > 2]
    assert line["missed"] == [["p3", name] for name in missed]


def test_interrupted_table_goes_on_and_repeats_nothing(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    plan, table = write_plan(tmp_path / "plan.json", dataset, [copy_arm("a"), copy_arm("b")]), tmp_path / "t.jsonl"
    waiting = write_plan(tmp_path / "waiting.json", dataset, [copy_arm("a"), copy_arm("b", "--wait-for", "absent")])
    process = start(*command_line("compare", "--plan", waiting, "--output", table, "--cases", "p1"))
    deadline = time.monotonic() + 120
    while runs_of(tmp_path) < 2 and time.monotonic() < deadline:  # the second job has started
        time.sleep(0.1)
    process.kill()
    process.communicate()
    assert [line["arm"] for line in read_lines(table)] == ["a"]
    compare(plan, table, "--cases", "p1")
    compare(plan, table, "--cases", "p1")
    assert [line["arm"] for line in read_lines(table)] == ["a", "b"]
    assert runs_of(tmp_path) == 3  # a, the killed b, and b


def test_job_that_two_processes_want_runs_once(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    go, table = tmp_path / "go", tmp_path / "t.jsonl"
    plan = write_plan(tmp_path / "plan.json", dataset, [copy_arm("slow", "--wait-for", str(go))])
    words = command_line("compare", "--plan", plan, "--output", table, "--cases", "p1")
    first = start(*words)
    deadline = time.monotonic() + 120
    while not runs_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    second = start(*words)
    _, message = second.communicate(timeout=120)
    assert second.returncode == 0, message
    assert "1 in other processes" in message
    go.touch()
    _, message = first.communicate(timeout=120)
    assert first.returncode == 0, message
    assert runs_of(tmp_path) == 1
    assert len(read_lines(table)) == 1


def test_failed_job_is_recorded_and_tried_again(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('the disk is on fire')")
    plan = write_plan(tmp_path / "plan.json", dataset, [{"name": "broken", "script": [str(broken)]}, copy_arm()])
    table = tmp_path / "t.jsonl"
    received = compare(plan, table, "--cases", "p1", code=3)
    assert received[-1]["code"] == "some_jobs_failed"
    failed, done = read_lines(table)
    assert (failed["status"], failed["code"], done["status"]) == ("failed", "job_failed", "done")
    assert "the disk is on fire" in failed["message"]
    shutil.copyfile(tmp_path / "script" / "copy_labels.py", broken)
    text = plan.read_text().replace(f'["{broken}"]', f'["{broken}", "--runs", "{tmp_path / "script" / "runs.txt"}"]')
    plan.write_text(text)
    compare(plan, table, "--cases", "p1")
    assert [line["status"] for line in read_lines(table)] == ["failed", "done", "done"]


def test_command_lists_jobs_and_runs_one_by_its_id(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    plan, table = write_plan(tmp_path / "plan.json", dataset, [copy_arm("a"), copy_arm("b")]), tmp_path / "t.jsonl"
    words = command_line("compare", "--plan", plan, "--output", table)
    listed = subprocess.run([*words, "--list-jobs"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[1] for line in listed] == ["open"] * 4
    identifier = next(line.split()[0] for line in listed if " b: phantoms, trained on p2" in line)
    compare(plan, table, "--job", identifier)
    assert [(line["job"], line["arm"], line["training_case"]) for line in read_lines(table)] == [
        (identifier, "b", "p2")
    ]
    listed = subprocess.run([*words, "--list-jobs"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in listed if line.split()[1] == "done"] == [identifier]


def test_command_refuses_another_split_for_a_table(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    plan, table = write_plan(tmp_path / "plan.json", dataset, [copy_arm()]), tmp_path / "t.jsonl"
    compare(plan, table, "--cases", "p1")
    received = compare(plan, table, "--cases", "p1", "--split", "test", code=2)
    assert received[-1]["code"] == "splits_mixed"


def test_chain_takes_the_processor_time_of_the_budget(dataset: Path, model: Path, tmp_path: Path) -> None:
    """The commands are stand-ins with 0.5 s of set-up and 0.02 s a step; the budget is 1.5 s, so about 50 steps."""
    engine = write_engine(tmp_path / "engine")
    arm = {
        "name": "timed",
        "learn": [["finetune", "--model", str(model)]],
        "apply": ["segment", "--labels", str(dataset / "labelsTr")],
    }
    plan, table = write_plan(tmp_path / "plan.json", dataset, [arm]), tmp_path / "t.jsonl"
    options = ("--cases", "p1", "--engine", f"timed={engine}", "--cpu-seconds", 1.5, "--seeds", 0, 1)
    compare(plan, table, *options, "--no-keep-models")
    first, second = read_lines(table)
    for line in (first, second):
        assert line["cpu_seconds"] == pytest.approx(1.5, rel=0.2)
        assert line["seconds_per_step"] == pytest.approx(0.02, rel=0.4)
        assert set(line["expected"]) <= set(line["cases"]["p3"])
        assert {score["dice"] for score in line["cases"]["p3"].values()} == {1.0}
    assert first["seconds_per_step"] == second["seconds_per_step"]  # seeds share the trials
    assert not list((tmp_path / "t.work" / "trainings").iterdir())


def test_cancelled_run_records_nothing_of_its_job(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    plan = read_plan(
        write_plan(tmp_path / "plan.json", dataset, [copy_arm("a", "--wait-for", str(tmp_path / "absent"))])
    )
    table, report = Table(tmp_path / "t.jsonl"), Reporter(quiet=True)
    jobs = list_jobs(plan, select(cases=["p1"]))
    check = report.check

    def check_and_cancel() -> None:
        if runs_of(tmp_path):
            report.cancel()
        check()

    report.check = check_and_cancel  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        run_jobs(plan, jobs, table, machine=Machine(), report=report)
    assert table.lines() == []


def test_real_chain_is_applied_to_two_targets_and_to_shifted_copies(dataset: Path, tmp_path: Path) -> None:
    """One training serves both targets. The second target joins two structures under other names."""
    labels = read_label_map(dataset / "labelsTr" / "p3.nii.gz")
    names = json.loads((dataset / "dataset.json").read_text())["labels"]
    (first, a), (second, b) = [(name, value) for name, value in names.items() if value][:2]
    other = np.isin(labels.array[0], (a, b)).astype(np.uint8) * 7
    write_label_map(tmp_path / "joined.nii.gz", other, labels.geometry)
    scan = str(dataset / "imagesTr" / "p3_0000.nii.gz")
    joined = {
        "name": "joined", "cases": {"q": {"image": scan, "label": str(tmp_path / "joined.nii.gz")}},
        "labels": {"both": 7}, "modality": "ct", "splits": {"tune": ["q"]},
    }  # fmt: skip
    targets = [{"dataset": "phantoms"}, {"dataset": "joined", "structures": {first: "both", second: "both"}}]
    datasets = [{"name": "phantoms", "folder": str(dataset), "targets": targets}, joined]
    arm = {"name": "scratch", "learn": [["finetune", "--init", "none"]], "apply": ["segment", "--clean"]}
    plan = write_plan(tmp_path / "plan.json", dataset, [arm], datasets=datasets)
    parsed, table = read_plan(plan), Table(tmp_path / "t.jsonl")
    jobs = list_jobs(parsed, select(cases=["p1"], budget=Budget(steps=2)))
    shifted = list_jobs(
        parsed, select(cases=["p1"], budget=Budget(steps=2), shifted=True, regions=["phantoms to joined"])
    )
    outcome = run_jobs(parsed, [*jobs, shifted[1]], table, machine=Machine(), report=Reporter(quiet=True))
    assert outcome.done == 3, table.lines()
    own, target, copies = table.lines()
    assert (own["steps"], own["region"], target["region"]) == (2, "phantoms", "phantoms to joined")
    assert own["weights_sha256"] == target["weights_sha256"]
    assert set(own["expected"]) & set(own["cases"]["p3"])
    assert list(target["cases"]["q"]) == ["both"]
    assert target["expected"] == {}  # nothing is expected of joined structures
    assert set(copies["copies"]) == {"intensity", "noise", "tilt", "crop", "slab"}
    for by_case in copies["copies"].values():
        for score in by_case["q"]["structures"].values():
            assert 0 <= score["retained"] <= 1.01
    noise = copies["copies"]["noise"]["q"]["structures"]["both"]
    assert noise["unshifted_dice"] == pytest.approx(target["cases"]["q"]["both"]["dice"])
    assert not list((tmp_path / "t.work" / "results").iterdir())


@pytest.mark.parametrize(
    ("options", "quoted"),
    [
        ((), "Give one of --plan"),
        (("--plan", "p.json", "--report", "t.jsonl"), "Give one of --plan"),
        (("--plan", "p.json"), "--output is missing"),
        (("--plan", "p.json", "--output", "t.json"), "--output is t.json"),
        (("--preset", "one-label", "--output", "t.jsonl"), "needs the folder of the data"),
        (("--plan", "p.json", "--output", "t.jsonl", "--steps", 5, "--cpu-seconds", 9), "exclude each other"),
    ],
)
def test_command_with_wrong_options_names_the_mistake(options: tuple, quoted: str) -> None:
    received, _ = run("compare", *options, code=2)
    assert quoted in received[-1]["message"]
    assert received[-1]["advice"]


def test_command_reports_a_table(dataset: Path, copy_arm: Arms, tmp_path: Path) -> None:
    plan, table = write_plan(tmp_path / "plan.json", dataset, [copy_arm("a"), copy_arm("b")]), tmp_path / "t.jsonl"
    compare(plan, table)
    received, _ = run("compare", "--report", table, "--baseline", "a", "--output", tmp_path / "report.json")
    assert [event["arm"] for event in received if event["event"] == "metric"] == ["a", "b"]
    (difference,) = json.loads((tmp_path / "report.json").read_text())["differences"]
    assert (difference["mean"], difference["n"], difference["ties"]) == (0.0, 1, 1)
    words = command_line("compare", "--report", table)
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "| phantoms | a | 2 x 1 |" in printed

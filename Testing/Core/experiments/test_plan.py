"""Plans: parsing and refusals, the list of jobs, their IDs, and the presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from experiment_files import SPLITS, select, write_engine

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.experiments.arms import PACKAGE_ROOT, SCRIPTS
from HiEndMAECore.experiments.job_list import list_jobs, use_engines
from HiEndMAECore.experiments.plan import Plan, parse_plan, read_plan
from HiEndMAECore.experiments.presets import PRESETS, read_preset

CHAIN = {"name": "scratch", "learn": [["finetune", "--init", "none"]], "apply": ["segment", "--clean"]}
SCRIPT = {"name": "elastix", "script": ["propagate_elastix.py"]}
NECK = {"name": "neck", "folder": "neck", "splits": SPLITS}


def parse(*datasets: dict[str, Any], arms: tuple[dict[str, Any], ...] = (CHAIN, SCRIPT), data: str = "data") -> Plan:
    return parse_plan({"datasets": list(datasets), "arms": list(arms)}, Path(data), source="plan.json")


def test_jobs_are_arms_times_training_cases_times_seeds() -> None:
    jobs = list_jobs(parse(NECK), select(seeds=(3, 4)))
    assert [(job.arm.name, job.training_case, job.seed) for job in jobs] == [
        ("scratch", "p1", 3), ("elastix", "p1", 3), ("scratch", "p2", 3), ("elastix", "p2", 3),
        ("scratch", "p1", 4), ("scratch", "p2", 4),  # a script draws nothing, so it has no second seed
    ]  # fmt: skip
    assert {job.cases for job in jobs} == {("p3",)}
    assert len({job.id for job in jobs}) == len(jobs)
    assert jobs[1].budget is None


def test_split_test_is_run_only_when_it_is_named() -> None:
    assert {job.cases for job in list_jobs(parse(NECK), select("test"))} == {("p4",)}
    assert not list_jobs(parse({**NECK, "splits": {"train": ["p1"], "test": ["p4"]}}), select("tune"))


def test_job_ids_depend_on_settings_and_not_on_the_place_of_the_data() -> None:
    (job, *_), (moved, *_) = (list_jobs(parse(NECK, data=data), select()) for data in ("data", "elsewhere"))
    assert job.id == moved.id
    other = {**CHAIN, "learn": [["finetune", "--init", "none", "--network", "unetr"]]}
    changed, *_ = list_jobs(parse(NECK, arms=(other,)), select())
    assert changed.id != job.id
    assert changed.describe()["digest"] != job.describe()["digest"]


def test_targets_share_the_training_unless_it_uses_them() -> None:
    belly = {**NECK, "name": "belly", "targets": [{"dataset": "belly"}, {"dataset": "neck", "structures": {"a": "b"}}]}
    own, other = list_jobs(parse(belly, NECK, arms=(CHAIN,)), select(regions=["belly"], cases=["first"]))
    assert (own.region, other.region) == ("belly", "belly to neck")
    assert own.training_id == other.training_id
    assert own.id != other.id
    with_targets = {**CHAIN, "learn": [["finetune", "--targets", "{targets}"]]}
    own, other = list_jobs(parse(belly, NECK, arms=(with_targets,)), select(regions=["belly"], cases=["first"]))
    assert own.training_id != other.training_id
    assert own.describe()["uses_targets"]


def test_paths_of_a_plan_are_absolute() -> None:
    """Child processes have another working directory."""
    assert parse(NECK).datasets[0].folder == Path.cwd() / "data" / "neck"


def test_selection_chooses_arms_regions_cases_and_jobs() -> None:
    plan = parse(NECK)
    jobs = list_jobs(plan, select(arms=["scratch"], cases=["first"], shifted=True))
    assert [(job.training_case, job.shifted) for job in jobs] == [("p1", False), ("p1", True)]
    assert list_jobs(plan, select(arms=["scratch"], cases=["first"], shifted=True, jobs=[jobs[1].id])) == [jobs[1]]
    for values in ({"arms": ["absent"]}, {"regions": ["absent"]}, {"cases": ["p9"]}, {"jobs": ["0123"]}):
        with pytest.raises(UsageError) as raised:
            list_jobs(plan, select(**values))
        assert raised.value.code == "selection_unknown"


def test_case_that_is_trained_on_and_tested_is_refused() -> None:
    with pytest.raises(InputError) as raised:
        list_jobs(parse({**NECK, "splits": {"train": ["p1"], "tune": ["p1"]}}), select())
    assert raised.value.code == "case_trained_and_tested"


@pytest.mark.parametrize(
    ("content", "quoted"),
    [
        ({"arms": [CHAIN]}, "'datasets' is not a list"),
        ({"datasets": [NECK], "arms": []}, "'arms' is not a list"),
        ({"datasets": [{**NECK, "name": ""}], "arms": [CHAIN]}, "without a name"),
        ({"datasets": [NECK, NECK], "arms": [CHAIN]}, "'neck' is named twice"),
        ({"datasets": [NECK], "arms": [CHAIN, CHAIN]}, "'scratch' is named twice"),
        ({"datasets": [NECK], "arms": [{"name": "a"}]}, "either 'learn' or 'script'"),
        ({"datasets": [NECK], "arms": [{"name": "a", "script": "x.py"}]}, "not a list of words"),
        ({"datasets": [{**NECK, "targets": [{"dataset": "absent"}]}], "arms": [CHAIN]}, "'absent'"),
        ({"datasets": [{**NECK, "modality": "us"}], "arms": [CHAIN]}, "not ct or mri"),
        ({"datasets": [{"name": "a", "cases": {"c": {"image": "i", "label": "l"}}}], "arms": [CHAIN]}, "'labels'"),
    ],
)
def test_ill_formed_plan_is_refused_with_its_fault(tmp_path: Path, content: dict, quoted: str) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as raised:
        read_plan(file)
    assert raised.value.code == "plan_ill_formed"
    assert quoted in raised.value.message


def test_plan_and_splits_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_plan(tmp_path / "absent.json")
    assert raised.value.code == "plan_unreadable"
    with pytest.raises(InputError) as raised:
        parse({"name": "neck", "folder": "neck"}, data=str(tmp_path))
    assert raised.value.code == "splits_unreadable"


def test_engine_of_a_checkout_replaces_that_of_an_arm_or_makes_a_new_one(tmp_path: Path) -> None:
    folder = write_engine(tmp_path / "old")
    plan = use_engines(parse(NECK), [f"baseline={folder}", f"elastix={folder}"])
    assert [(arm.name, arm.engine) for arm in plan.arms] == [
        ("scratch", None), ("elastix", folder.resolve()), ("baseline", folder.resolve()),
    ]  # fmt: skip
    assert plan.arms[2].learn == plan.arms[0].learn
    with pytest.raises(UsageError) as raised:
        use_engines(plan, [f"baseline={tmp_path}"])
    assert raised.value.code == "engine_unusable"


def test_presets_name_scripts_that_exist_and_datasets_of_the_folder(real_data: Path) -> None:
    plan = read_preset("one-label", real_data)
    regions = {job.region for job in list_jobs(plan, select("test"))}
    assert {"OpenKBP", "BTCV", "CHAOS MRI", "ACDC", "hippocampus", "abdomen A to BTCV", "abdomen A to slab"} == regions
    assert "abdomen A to slab" not in {job.region for job in list_jobs(plan, select("tune"))}


@pytest.mark.parametrize("name", PRESETS)
def test_scripts_of_a_preset_exist(name: str) -> None:
    scripts = [arm["script"][0] for arm in PRESETS[name]["arms"] if "script" in arm]
    assert scripts
    assert all((PACKAGE_ROOT / SCRIPTS / script).is_file() for script in scripts)

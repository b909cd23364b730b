"""The doors as somebody runs them: real processes, real files, exit codes, events, control, and a hard kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from HiEndMAECore.data.phantom import PHANTOM_STRUCTURES, make_patient
from HiEndMAECore.io.writers import write_label_map, write_scalar_map
from HiEndMAECore.models.folder import read_description, read_weights
from HiEndMAECore.reporting import events
from HiEndMAECore.training.training_log import read_log, step_records

REPOSITORY = Path(__file__).resolve().parents[2]


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"HiEndMAECore.{name}", *map(str, arguments)]


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUTF8": "1"},
    )


def run(name: str, *arguments: object, code: int = 0) -> tuple[list[dict], str]:
    """Run a door with --events; (its events, what it said on standard error). Every line must be an event."""
    process = start(*command(name, *arguments, "--events"))
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    heard = [events.decode(line) for line in out.splitlines()]
    assert None not in heard, out
    # A mistake in the arguments may be seen before the run starts, or by it.
    assert heard[0]["event"] == "started" or (code == 2 and len(heard) == 1)  # type: ignore[index]
    assert heard[-1]["event"] == ("finished" if code == 0 else "failed")  # type: ignore[index]
    return heard, err  # type: ignore[return-value]


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three coarse digital patients: two labelled, one not, under a path with a space and an umlaut."""
    folder = tmp_path_factory.mktemp("Büro 1")
    for seed in (1, 2, 3):
        scan, labels = make_patient(seed, shape=(42, 36, 36), spacing=(8.0, 8.0, 8.0))
        write_scalar_map(folder / "scans" / f"p{seed}_0000.nii.gz", scan.array[0], scan.geometry)
        if seed < 3:
            write_label_map(folder / "labels" / f"p{seed}.nii.gz", labels.array[0], labels.geometry)
    return folder


@pytest.fixture(scope="module")
def model(patients: Path) -> Path:
    """A model that has seen three steps: it can do nothing, but it does it properly."""
    path = patients / "model"
    run(
        "finetune", "--image", patients / "scans/p1_0000.nii.gz", "--label", patients / "labels/p1.nii.gz",
        "--output", path, "--steps", 3, "--device", "cpu",
    )  # fmt: skip
    return path


def test_the_whole_way(patients: Path, tmp_path: Path) -> None:
    """prepare, pretrain, finetune from it, segment, evaluate: each from what the one before left."""
    heard, _ = run("prepare", "--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 8, 8, 8)
    assert {e["name"]: e["value"] for e in heard if e["event"] == "metric"} == {"scans": 3}
    settings = ("--variant", "hi_end_mae_vit_tiny_8p", "--batch-size", 4, "--device", "cpu", "--crop", 32, 32, 32)
    heard, _ = run("pretrain", "--data", tmp_path / "store", "--output", tmp_path / "run", "--steps", 3, *settings)
    assert [e["step"] for e in heard if e["event"] == "progress" and e["stage"] == "pretraining"][-1] == 3
    assert (tmp_path / "run" / "progress.png").stat().st_size > 10_000
    assert [record.step for record in step_records(read_log(tmp_path / "run"))] == [1, 2, 3]
    pretrained = read_description(tmp_path / "run" / "model")
    heard, _ = run(
        "finetune", "--image", patients / "scans/p1_0000.nii.gz", "--label", patients / "labels/p1.nii.gz",
        "--init", tmp_path / "run", "--output", tmp_path / "m.zip", "--steps", 2, "--device", "cpu",
    )  # fmt: skip
    taught = read_description(tmp_path / "m.zip")
    assert taught.training["init_sha256"] == pretrained.weights_sha256
    assert taught.preparation["spacing"] == [8.0, 8.0, 8.0]
    run(
        "segment", "--model", tmp_path / "m.zip", "--input", patients / "scans", "--output", tmp_path / "out", "--clean"
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        f"p{n}.{e}" for n in (1, 2, 3) for e in ("json", "nii.gz")
    ]
    heard, _ = run(
        "evaluate",
        "--prediction",
        tmp_path / "out",
        "--reference",
        patients / "labels",
        "--output",
        tmp_path / "report.json",
    )
    assert any(e["event"] == "metric" and e["name"] == "dice" for e in heard)


def test_a_result_lies_on_its_scan_and_tells_of_itself(patients: Path, model: Path, tmp_path: Path) -> None:
    scan = patients / "scans" / "p2_0000.nii.gz"
    out = tmp_path / "Ergebnis ü.nii.gz"
    run("segment", "--model", model, "--input", scan, "--output", out, "--uncertainty")
    given, made = nib.load(scan), nib.load(out)
    assert made.shape == given.shape
    np.testing.assert_array_equal(made.affine, given.affine)
    entropy = nib.load(tmp_path / "Ergebnis ü_entropy.nii.gz")
    assert entropy.shape == given.shape
    record = json.loads((tmp_path / "Ergebnis ü.json").read_text(encoding="utf-8"))
    counted = {s["value"]: s["volume_ml"] for s in record["structures"]}
    voxel = 8.0**3 / 1000
    for value, volume in counted.items():
        assert volume == pytest.approx(voxel * int((np.asarray(made.dataobj) == value).sum()), abs=2e-3)


def test_a_result_with_nothing_in_it_is_told(patients: Path, model: Path, tmp_path: Path) -> None:
    scan, _ = make_patient(4, shape=(42, 36, 36), spacing=(8.0, 8.0, 8.0))
    write_scalar_map(tmp_path / "air.nii.gz", np.full_like(scan.array[0], -1000), scan.geometry)
    out = tmp_path / "out.nii.gz"
    heard, _ = run("segment", "--model", model, "--input", tmp_path / "air.nii.gz", "--output", out)
    assert not np.asarray(nib.load(out).dataobj).any()
    told = [event for event in heard if event["event"] == "warning" and event["code"] == "nothing_found"]
    assert [event["message"] for event in told] == ["air: No structure was found."]
    assert "nothing_found" in [note["code"] for note in json.loads((tmp_path / "out.json").read_text())["warnings"]]


def test_where_all_was_cleaned_away_no_slice_is_named(patients: Path, model: Path, tmp_path: Path) -> None:
    """`model` paints something in this patient: without the last option there are slices to look at first."""
    for options in ((), ("--smallest", 1e6)):
        out = tmp_path / "out.nii.gz"
        run("segment", "--model", model, "--input", patients / "scans/p2_0000.nii.gz", "--output", out, *options)
        record = json.loads((tmp_path / "out.json").read_text())
        assert bool(record["review_slices"]) is not bool(options)
        assert bool(np.asarray(nib.load(out).dataobj).any()) is not bool(options)


def test_same_steps_and_seed_give_the_same_model(patients: Path, model: Path, tmp_path: Path) -> None:
    run(
        "finetune", "--image", patients / "scans/p1_0000.nii.gz", "--label", patients / "labels/p1.nii.gz",
        "--output", tmp_path / "again", "--steps", 3, "--device", "cpu",
    )  # fmt: skip
    assert read_description(tmp_path / "again").weights_sha256 == read_description(model).weights_sha256


def test_no_pixels_no_names_of_patients_in_a_model(patients: Path, model: Path) -> None:
    assert sorted(p.name for p in model.iterdir()) == ["model.json", "model.safetensors"]
    text = (model / "model.json").read_text(encoding="utf-8")
    assert "p1" not in json.loads(text)["name"]
    assert str(patients) not in text


def test_a_corrected_scan_improves_the_same_structures(patients: Path, model: Path, tmp_path: Path) -> None:
    run(
        "finetune", "--image", patients / "scans/p2_0000.nii.gz", "--label", patients / "labels/p2.nii.gz",
        "--improve", model, "--output", tmp_path / "better", "--steps", 2, "--device", "cpu",
    )  # fmt: skip
    old, new = read_description(model), read_description(tmp_path / "better")
    assert [label["name"] for label in new.labels] == [label["name"] for label in old.labels]
    assert new.training["init_sha256"] == old.weights_sha256


def test_a_new_structure_in_a_corrected_scan_is_told(patients: Path, model: Path, tmp_path: Path) -> None:
    image = nib.load(patients / "labels/p2.nii.gz")
    labels = np.asarray(image.dataobj).copy()
    labels[:4, :4, :4] = 9
    nib.save(nib.Nifti1Image(labels, image.affine), tmp_path / "p2.nii.gz")
    heard, _ = run(
        "finetune", "--image", patients / "scans/p2_0000.nii.gz", "--label", tmp_path / "p2.nii.gz",
        "--improve", model, "--output", tmp_path / "better", "--steps", 1, "--device", "cpu",
    )  # fmt: skip
    assert "labels_unknown" in [event.get("code") for event in heard]


@pytest.mark.parametrize(("word", "code"), [("finish", 0), ("cancel", 130)])
def test_a_control_file_ends_a_run(patients: Path, tmp_path: Path, word: str, code: int) -> None:
    control = tmp_path / "control"
    process = start(*command(
        "finetune", "--image", patients / "scans/p1_0000.nii.gz", "--label", patients / "labels/p1.nii.gz",
        "--output", tmp_path / "model", "--steps", 5000, "--device", "cpu", "--events", "--control", control,
    ))  # fmt: skip
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
def test_a_killed_run_leaves_no_half_written_model(patients: Path, tmp_path: Path) -> None:
    """Killed at many moments around the writing of the model: it is whole, or it is not there."""
    line = command(
        "finetune", "--image", patients / "scans/p1_0000.nii.gz", "--label", patients / "labels/p1.nii.gz",
        "--output", tmp_path / "model", "--steps", 2, "--device", "cpu", "--events",
    )  # fmt: skip
    for delay in (0.0, 0.03, 0.06, 0.1, 0.15):
        process = start(*line)
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
    run(*line[2].split(".")[1:], *line[3:-1])  # what killed runs left is in nobody's way
    assert read_weights(tmp_path / "model")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to catch")
def test_sigterm_saves_and_leaves_and_the_run_goes_on(patients: Path, tmp_path: Path) -> None:
    settings = (
        "--data", patients / "scans", "--output", tmp_path / "run", "--variant", "hi_end_mae_vit_tiny_8p", "--spacing", 8, 8, 8,
        "--batch-size", 2, "--crop", 32, 32, 32, "--steps", 60, "--device", "cpu",
    )  # fmt: skip
    process = start(*command("pretrain", *settings, "--events"))
    assert process.stdout is not None
    for line in process.stdout:
        event = events.decode(line) or {}
        if event["event"] == "progress" and event["stage"] == "pretraining":
            process.send_signal(signal.SIGTERM)
            break
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (events.decode(out.splitlines()[-1]) or {})["code"] == "cancelled"
    run("pretrain", *settings, code=2)  # it does not start over by accident
    heard, _ = run("pretrain", *settings, "--resume")
    steps = [e["step"] for e in heard if e["event"] == "progress" and e["stage"] == "pretraining"]
    assert steps[0] > 0  # a new run starts by telling step 0
    assert steps[-1] == 60


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_pretraining_goes_on_with_the_losses_of_one_never_killed(patients: Path, tmp_path: Path) -> None:
    settings = (
        "--variant", "hi_end_mae_vit_tiny_8p", "--batch-size", 2, "--crop", 32, 32, 32, "--steps", 30, "--device", "cpu",
        "--snapshot-minutes", 0.001,
    )  # fmt: skip
    run("prepare", "--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 8, 8, 8)
    run("pretrain", "--data", tmp_path / "store", "--output", tmp_path / "whole", *settings)
    killed = ("--data", tmp_path / "store", "--output", tmp_path / "killed", *settings)
    process = start(*command("pretrain", *killed))
    while process.poll() is None and not list((tmp_path / "killed").glob("snapshots/step-*[1-9].safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    log = tmp_path / "killed" / "log.jsonl"
    with log.open("a", encoding="utf-8") as file:
        file.write('{"step": 29, "lo')  # as a killed process may leave it
    run("pretrain", *killed, "--resume")
    assert [(s.step, s.loss) for s in step_records(read_log(tmp_path / "killed"))] == [
        (s.step, s.loss) for s in step_records(read_log(tmp_path / "whole"))
    ]


def test_one_bad_scan_does_not_stop_a_batch(patients: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.nii.gz").write_bytes((patients / "scans" / "p3_0000.nii.gz").read_bytes())
    (tmp_path / "in" / "cut.nii.gz").write_bytes((patients / "scans" / "p3_0000.nii.gz").read_bytes()[:2000])
    (tmp_path / "in" / "text.nii.gz").write_text("this is no scan")
    heard, _ = run("segment", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out", code=3)
    assert heard[-1]["code"] == "some_cases_failed"
    assert "cut" in heard[-1]["message"]
    assert "text" in heard[-1]["message"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.json", "good.nii.gz"]


def test_scans_of_one_name_do_not_overwrite_each_other(patients: Path, model: Path, tmp_path: Path) -> None:
    for name in ("Doe, Jane", "Roe"):  # a comma in a folder's name is no list of channels
        (tmp_path / name).mkdir()
        (tmp_path / name / "ct.nii.gz").write_bytes((patients / "scans" / "p3_0000.nii.gz").read_bytes())
    scans = [tmp_path / name / "ct.nii.gz" for name in ("Doe, Jane", "Roe")]
    run("segment", "--model", model, "--input", *scans, "--output", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("segment", "--model", "{model}", "--input", "{here}/absent.nii.gz", "--output", "{out}"), 3, "absent.nii.gz"),
        (("segment", "--model", "{here}", "--input", "{here}/scans", "--output", "{out}"), 3, "no model"),
        (("segment", "--model", "{model}", "--input", "{here}/scans", "--output", "{out}/one.nii.gz"), 2, "3 scans"),
        (("segment", "--device", "cuda:7", "--model", "{model}", "--input", "{here}/scans", "--output", "{out}"), 2, "cuda"),
        (("finetune", "--image", "{here}/scans/p1_0000.nii.gz", "--output", "{out}"), 2, "--label"),
        (("finetune", "--image", "{here}/scans/p1_0000.nii.gz", "--label", "{here}/labels/p1.nii.gz",
          "--output", "{here}/labels", "--steps", "1"), 3, "will not be overwritten"),
        (("finetune", "--image", "{here}/scans/p1_0000.nii.gz", "--label", "{here}/scans/p1_0000.nii.gz", "--output", "{out}"),
         3, "p1_0000"),
        (("pretrain", "--data", "{here}/labels/none", "--output", "{out}", "--steps", "1"), 3, "none"),
        (("pretrain", "--data", "{here}", "--output", "{out}", "--batch-size", "3", "--accumulate", "2"), 2, "--batch-size 3"),
        (("prepare", "--input", "{here}/labels/none", "--output", "{out}"), 3, "none"),
    ],
)  # fmt: skip
def test_mistakes_are_named(
    patients: Path, model: Path, tmp_path: Path, arguments: tuple, code: int, named: str
) -> None:
    places = {"model": model, "here": patients, "out": tmp_path / "out"}
    heard, err = run(*(part.format(**places) for part in arguments), code=code)
    assert named in heard[-1]["message"]
    assert heard[-1]["advice"]
    assert "Traceback" not in err


def test_the_demonstration_on_a_data_set(patients: Path, tmp_path: Path) -> None:
    """All doors in one, on a data set in nnU-Net's layout; too few steps to learn, enough to see every part work."""
    data = tmp_path / "data"
    for place, source, case in (("imagesTr", "scans", "p1_0000"), ("imagesTr", "scans", "p2_0000"),
                                ("imagesUnlabelled", "scans", "p3_0000"), ("labelsTr", "labels", "p1"),
                                ("labelsTr", "labels", "p2")):  # fmt: skip
        (data / place).mkdir(parents=True, exist_ok=True)
        (data / place / f"{case}.nii.gz").write_bytes((patients / source / f"{case}.nii.gz").read_bytes())
    names = {structure.name: structure.value for structure in PHANTOM_STRUCTURES}
    about = {
        "name": "coarse",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **names},
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(about))
    out = tmp_path / "demo"
    heard, _ = run(
        "demo",
        "--output",
        out,
        "--dataset",
        data,
        "--teacher",
        "p2",
        "--pretraining-steps",
        2,
        "--steps",
        2,
        "--device",
        "cpu",
    )
    previews = [Path(event["path"]).name for event in heard if event["event"] == "preview"]
    assert previews == ["progress.png", "result.png"]
    assert [row["case"] for row in json.loads((out / "scores.json").read_text())["cases"]] == ["p1"] * len(names)
    assert (
        read_description(out / "model").training["init_sha256"]
        == read_description(out / "pretraining/model").weights_sha256
    )


def test_held_out_scans_do_not_get_in(patients: Path, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(json.dumps({"test": ["p2"], "tune": ["p1"]}))
    settings = ("--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 8, 8, 8)
    run("prepare", *settings, "--hold-out", tmp_path / "splits.json")
    manifest = json.loads((tmp_path / "store" / "manifest.json").read_text())
    assert [scan["name"] for scan in manifest["scans"]] == ["p3"]
    assert manifest["held_out"] == 2
    run("prepare", "--input", patients / "scans", "--output", tmp_path / "store", "--spacing", 4, 4, 4, code=3)

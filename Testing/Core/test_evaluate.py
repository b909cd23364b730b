"""The evaluate door: pairs by name, scores what the reference labels, survives one bad case, writes what it says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from HiEndMAECore import evaluate
from HiEndMAECore.data.phantom import PHANTOM_STRUCTURES, make_patient
from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.evaluate import EvaluateConfig
from HiEndMAECore.reporting import events

AFFINE = np.array([[0.0, -2.0, 0.0, 30.0], [1.5, 0.0, 0.0, -40.0], [0.0, 0.0, 4.0, 7.0], [0.0, 0.0, 0.0, 1.0]])


def save(path: Path, labels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), affine), path)
    return path


def cube(start: int, value: int = 1, size: int = 6) -> np.ndarray:
    labels = np.zeros((20, 18, 16), dtype=np.uint8)
    labels[start : start + size, 4:10, 4:10] = value
    return labels


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """Four cases with references, three of them predicted, and what lies about in such folders."""
    results, labels = tmp_path / "results", tmp_path / "dataset" / "labelsTr"
    save(labels / "a.nii.gz", cube(5) + cube(12, 2))
    save(labels / "b.nii.gz", cube(5))
    save(labels / "c.nii.gz", cube(5) + cube(12, 2))
    save(labels / "d_0000.nii", cube(5) + cube(12, 2))
    save(results / "a.nii.gz", cube(5) + cube(12, 2))
    save(results / "a_entropy.nii.gz", cube(0))
    (results / "a.json").write_text("{}")
    save(results / "b.nii.gz", cube(8) + cube(14, 2))
    save(results / "d.nii.gz", cube(5))
    save(results / "extra.nii.gz", cube(5))
    names = {"background": 0, "liver": 1, "spleen": 2, "colon": 3, "ignore": 4}
    (labels.parent / "dataset.json").write_text(json.dumps({"labels": names}))
    return tmp_path


def evaluate_in(folder: Path, **changes) -> tuple[dict, list[dict[str, str]]]:
    config: dict[str, Any] = {
        "prediction": folder / "results",
        "reference": folder / "dataset/labelsTr",
        "output": folder / "out/report.json",
    }
    outputs = evaluate.run(EvaluateConfig(**{**config, **changes}))
    with Path(outputs["table"]).open(encoding="utf-8", newline="") as file:
        return json.loads(Path(outputs["report"]).read_text()), list(csv.DictReader(file))


def test_a_folder_is_paired_by_name_and_scored(batch: Path) -> None:
    report, table = evaluate_in(batch)
    assert report["without_prediction"] == ["c"]
    assert report["without_reference"] == ["extra"]
    liver, spleen, colon = report["structures"]
    assert [row["name"] for row in report["structures"]] == ["liver", "spleen", "colon"]
    assert (liver["n"], liver["missed"], liver["not_labelled"]) == (3, 0, 0)
    assert liver["dice"]["mean"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert liver["hd95_mm"]["mean"] == pytest.approx((0 + 4.5 + 0) / 3)  # three voxels of 1.5 mm
    assert (spleen["n"], spleen["missed"], spleen["not_labelled"]) == (2, 1, 1)
    assert (spleen["dice"]["mean"], spleen["hd95_mm"]["mean"], spleen["hd95_mm"]["n"]) == (0.5, 0.0, 1)
    assert spleen["false_positive_ml"] == pytest.approx(6 * 6 * 6 * 0.012)
    assert (colon["n"], colon["not_labelled"]) == (0, 3)
    assert report["overall"]["dice"]["mean"] == pytest.approx((liver["dice"]["mean"] + 0.5) / 2)

    assert [(row["case"], row["structure"]) for row in table] == [
        (c, s) for c in "abd" for s in ("liver", "spleen", "colon")
    ]
    missed = next(row for row in table if (row["case"], row["structure"]) == ("d", "spleen"))
    assert (missed["status"], missed["dice"], missed["hd95_mm"]) == ("missed", "0.0", "")
    assert sorted(path.name for path in (batch / "out").iterdir()) == ["report.csv", "report.json"]


def test_tolerance_and_names_are_the_caller_s(batch: Path) -> None:
    names = batch / "model.json"
    names.write_text(json.dumps({"labels": [{"name": "Leber", "value": 1}, {"name": "Milz", "value": 2}]}))
    strict, _ = evaluate_in(batch, tolerance=0.1)
    loose, _ = evaluate_in(batch, tolerance=50.0, labels=names)
    assert [row["name"] for row in loose["structures"]] == ["Leber", "Milz"]
    assert strict["structures"][0]["nsd"]["mean"] < loose["structures"][0]["nsd"]["mean"] == 1.0
    names.write_text(json.dumps({"labels": {"0": "background", "1": "old style"}}))
    assert evaluate_in(batch, labels=names)[0]["structures"][0]["name"] == "old style"


def test_two_files_pair_whatever_their_names(batch: Path) -> None:
    one, other = save(batch / "mine.nii.gz", cube(5)), save(batch / "theirs.nii", cube(6))
    report, _ = evaluate_in(batch, prediction=one, reference=other)
    assert [row["dice"] for row in report["cases"]] == [pytest.approx(5 / 6)]
    assert report["structures"][0]["name"] == "label 1"


def test_a_turned_and_cropped_reference_is_the_same_reference(batch: Path) -> None:
    whole = nib.Nifti1Image(cube(5), AFFINE)
    cropped = whole.slicer[2:15, 3:12, 2:11]
    turned = cropped.as_reoriented(nib.orientations.axcodes2ornt("SLA"))
    nib.save(turned, batch / "turned.nii.gz")
    assert turned.shape != whole.shape
    one = save(batch / "mine.nii.gz", cube(6))
    report, _ = evaluate_in(batch, prediction=one, reference=batch / "turned.nii.gz")
    straight, _ = evaluate_in(batch, prediction=one, reference=save(batch / "theirs.nii.gz", cube(5)))
    assert report["cases"][0]["hd95_mm"] == straight["cases"][0]["hd95_mm"] == 1.5
    assert report["cases"][0]["dice"] == straight["cases"][0]["dice"] == pytest.approx(5 / 6)


def test_a_file_finds_its_reference_in_a_folder(batch: Path) -> None:
    report, _ = evaluate_in(batch, prediction=batch / "results/b.nii.gz")
    assert {row["case"] for row in report["cases"]} == {"b"}
    assert report["without_prediction"] == []


@pytest.mark.parametrize("harm", ["geometry", "shape", "damaged"])
def test_one_bad_case_is_told_and_skipped(batch: Path, harm: str) -> None:
    bad = batch / "results/b.nii.gz"
    if harm == "geometry":
        save(bad, cube(5), AFFINE + np.diag([0.0, 0.0, 0.5, 0.0]))
    elif harm == "shape":
        save(bad, cube(5)[:, :, :8])
    else:
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    with pytest.raises(InputError) as caught:
        evaluate_in(batch)
    assert caught.value.code == "some_cases_failed"
    assert "1 of 3" in caught.value.message
    report = json.loads((batch / "out/report.json").read_text())
    assert [case["case"] for case in report["failed"]] == ["b"]
    assert {row["case"] for row in report["cases"]} == {"a", "d"}
    with pytest.raises(InputError) as alone:
        evaluate_in(batch, prediction=bad, reference=batch / "dataset/labelsTr/b.nii.gz")
    assert alone.value.code == report["failed"][0]["code"]


def test_what_cannot_be_paired_is_refused(batch: Path) -> None:
    def code(**changes: Path) -> str:
        with pytest.raises(InputError) as caught:
            evaluate_in(batch, **changes)
        return caught.value.code

    (batch / "empty").mkdir()
    save(batch / "others/z.nii.gz", cube(5))
    assert code(prediction=batch / "nowhere") == "file_missing"
    assert code(prediction=batch / "empty") == "no_cases"
    assert code(prediction=batch / "others") == "no_pairs"
    assert code(labels=batch / "results/a.json") == "labels_unreadable"
    save(batch / "results/a_0000.nii.gz", cube(5))
    assert code() == "case_twice"
    with pytest.raises(UsageError):
        EvaluateConfig(output=Path("report.csv"))
    with pytest.raises(UsageError):
        EvaluateConfig(tolerance=0.0)


def test_the_command_line_speaks_events_and_leaves_3_for_a_bad_case(batch: Path) -> None:
    save(batch / "results/b.nii.gz", cube(5)[:, :, :8])
    given = ["--prediction", batch / "results", "--reference", batch / "dataset/labelsTr", "--output", batch / "r.json"]
    line = [sys.executable, "-m", "HiEndMAECore.evaluate", *map(str, given)]
    told = subprocess.run([*line, "--events"], capture_output=True, text=True)
    heard = [events.decode(row) for row in told.stdout.splitlines()]
    assert told.returncode == 3
    assert None not in heard
    assert heard[0]["event"] == "started"
    assert (heard[-1]["event"], heard[-1]["code"]) == ("failed", "some_cases_failed")
    told_alone = [row["message"] for row in heard if row["event"] == "warning"][:2]
    assert [message.rpartition(": ")[2] for message in told_alone] == ["c.", "extra."]
    means = {(row["structure"], row["name"]): row["value"] for row in heard if row["event"] == "metric"}
    assert means["liver", "dice"] == 1.0
    assert means["colon", "dice"] is None
    assert [(row["step"], row["total"]) for row in heard if row["event"] == "progress"][-1] == (3, 3)

    save(batch / "results/b.nii.gz", cube(5))
    told = subprocess.run(line, capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (0, "")
    assert "liver" in told.stderr
    assert "1 missed" in told.stderr


def test_a_phantom_s_organs_are_told_apart(tmp_path: Path) -> None:
    _, labels = make_patient(1, shape=(56, 48, 48), spacing=(6.0, 6.0, 6.0))
    reference = save(tmp_path / "reference.nii.gz", labels.array[0], labels.affine)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {one.name: one.value for one in PHANTOM_STRUCTURES}}))
    report, _ = evaluate_in(tmp_path, prediction=reference, reference=reference)
    assert [row["name"] for row in report["structures"]] == [one.name for one in PHANTOM_STRUCTURES]
    assert all(row["dice"] == row["nsd"] == 1.0 for row in report["cases"])
    moved = save(tmp_path / "moved.nii.gz", np.roll(labels.array[0], 1, axis=0), labels.affine)
    report, _ = evaluate_in(tmp_path, prediction=moved, reference=reference)
    assert all(row["hd95_mm"] == 6.0 and 0.3 < row["dice"] < 1.0 for row in report["cases"])

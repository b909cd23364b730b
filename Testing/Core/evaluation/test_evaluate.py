"""The command `evaluate`: pairs by name, scores on a common grid, continues after a bad case, and writes a report."""

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
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.io.writers import write_label_map
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
    """Return a folder of four references and three predictions, with other files that such folders contain."""
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


def test_evaluate_folders_pairs_by_name_and_scores(batch: Path) -> None:
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


def test_evaluate_uses_the_given_tolerance_and_names(batch: Path) -> None:
    names = batch / "model.json"
    names.write_text(json.dumps({"labels": [{"name": "Leber", "value": 1}, {"name": "Milz", "value": 2}]}))
    strict, _ = evaluate_in(batch, tolerance=0.1)
    loose, _ = evaluate_in(batch, tolerance=50.0, labels=names)
    assert [row["name"] for row in loose["structures"]] == ["Leber", "Milz"]
    assert strict["structures"][0]["nsd"]["mean"] < loose["structures"][0]["nsd"]["mean"] == 1.0
    names.write_text(json.dumps({"labels": {"0": "background", "1": "old style"}}))
    assert evaluate_in(batch, labels=names)[0]["structures"][0]["name"] == "old style"


@pytest.mark.parametrize("source", ["dataset.json", "--ignore"])
def test_evaluate_leaves_out_the_ignored_voxels_of_a_reference(batch: Path, source: str) -> None:
    value = 4 if source == "dataset.json" else 2  # 2 is the spleen by its name
    labels = cube(5)
    labels[8:] = value
    save(batch / "dataset/labelsTr/b.nii.gz", labels)
    save(batch / "results/b.nii.gz", cube(6))
    report, table = evaluate_in(batch, **({} if source == "dataset.json" else {"ignore": value}))
    assert report["ignore"] == value
    assert [row["name"] for row in report["structures"]] == ["liver", "spleen", "colon"][: 3 if value == 4 else 1] + (
        ["colon"] if value == 2 else []
    )
    liver = next(row for row in table if (row["case"], row["structure"]) == ("b", "liver"))
    assert float(liver["dice"]) == pytest.approx(2 * 2 / (3 + 2))
    assert float(liver["reference_ml"]) == pytest.approx(3 * 36 * 0.012)


def test_evaluate_two_files_pairs_them_whatever_their_names(batch: Path) -> None:
    prediction, reference = save(batch / "model.nii.gz", cube(5)), save(batch / "expert.nii", cube(6))
    report, _ = evaluate_in(batch, prediction=prediction, reference=reference)
    assert [row["dice"] for row in report["cases"]] == [pytest.approx(5 / 6)]
    assert report["structures"][0]["name"] == "label 1"


def test_evaluate_permuted_and_cropped_reference_gives_equal_scores(batch: Path) -> None:
    whole = nib.Nifti1Image(cube(5), AFFINE)
    cropped = whole.slicer[2:15, 3:12, 2:11]
    permuted = cropped.as_reoriented(nib.orientations.axcodes2ornt("SLA"))
    nib.save(permuted, batch / "permuted.nii.gz")
    assert permuted.shape != whole.shape
    prediction = save(batch / "model.nii.gz", cube(6))
    report, _ = evaluate_in(batch, prediction=prediction, reference=batch / "permuted.nii.gz")
    expected, _ = evaluate_in(batch, prediction=prediction, reference=save(batch / "expert.nii.gz", cube(5)))
    assert report["cases"][0]["hd95_mm"] == expected["cases"][0]["hd95_mm"] == 1.5
    assert report["cases"][0]["dice"] == expected["cases"][0]["dice"] == pytest.approx(5 / 6)


# The cube of the prediction is [6:12, 4:10, 4:10], that of the reference [5:11, 4:10, 4:10], of 20 x 18 x 16 voxels.
BOX_OF_PREDICTION = np.s_[6:12, 4:10, 4:10]
BOX_OF_REFERENCE = np.s_[5:11, 4:10, 4:10]
WHOLE = np.s_[0:20, 0:18, 0:16]


def shift_to(*start: float) -> np.ndarray:
    """Return the (4, 4) matrix from the voxels of a box that begins at `start` to those of the whole volume."""
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix


@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
@pytest.mark.parametrize("axes", ["SLA", "RAS"])
@pytest.mark.parametrize(
    ("prediction_box", "reference_box"),
    [
        (BOX_OF_PREDICTION, WHOLE),  # as 3D Slicer crops a .seg.nrrd file
        (np.s_[3:13, 2:11, 4:10], WHOLE),
        (BOX_OF_PREDICTION, BOX_OF_REFERENCE),  # each lacks a part of the other
        (np.s_[6:20, 4:18, 4:16], np.s_[0:11, 0:10, 0:10]),
    ],
)
def test_evaluate_cropped_prediction_gives_the_scores_of_the_whole_one(
    tmp_path: Path, prediction_box: tuple[slice, ...], reference_box: tuple[slice, ...], axes: str, suffix: str
) -> None:
    whole = [save(tmp_path / f"{name}.nii.gz", cube(start)) for name, start in (("model", 6), ("expert", 5))]
    expected, _ = evaluate_in(tmp_path, prediction=whole[0], reference=whole[1])
    cropped = nib.load(whole[0]).slicer[prediction_box].as_reoriented(nib.orientations.axcodes2ornt(axes))
    prediction = tmp_path / f"cropped{suffix}"
    labels, geometry = np.asarray(cropped.dataobj), Geometry(cropped.shape, cropped.affine)
    write_label_map(prediction, labels, geometry, structures=[Structure(1, "liver", (221, 130, 80))])
    start = [part.start for part in reference_box]
    reference = save(tmp_path / "reference.nii.gz", cube(5)[reference_box], AFFINE @ shift_to(*start))
    report, _ = evaluate_in(tmp_path, prediction=prediction, reference=reference)
    for score in ("dice", "hd95_mm", "nsd", "reference_ml", "prediction_ml"):
        assert report["cases"][0][score] == pytest.approx(expected["cases"][0][score], rel=1e-5), score


@pytest.mark.parametrize("labels", [cube(5), cube(5) * 0])
def test_evaluate_prediction_without_overlap_is_refused(tmp_path: Path, labels: np.ndarray) -> None:
    """Two scans of one protocol have the same voxels; without an overlap they are not the same scan."""
    reference = save(tmp_path / "reference.nii.gz", cube(5))
    elsewhere = save(tmp_path / "elsewhere.nii.gz", labels, AFFINE @ shift_to(0, 0, 16))
    with pytest.raises(InputError, match="do not overlap") as caught:
        evaluate_in(tmp_path, prediction=elsewhere, reference=reference)
    assert caught.value.code == "geometry_mismatch"


def test_evaluate_file_against_a_folder_finds_its_reference(batch: Path) -> None:
    report, _ = evaluate_in(batch, prediction=batch / "results/b.nii.gz")
    assert {row["case"] for row in report["cases"]} == {"b"}
    assert report["without_prediction"] == []


def save_off_grid(path: Path) -> Path:
    """Write a label map that lies half a voxel off the grid of its reference."""
    return save(path, cube(5), AFFINE @ shift_to(0, 0, 0.5))


@pytest.mark.parametrize("fault", ["spacing", "half a voxel", "damaged"])
def test_evaluate_folder_with_a_bad_case_scores_the_others(batch: Path, fault: str) -> None:
    bad = batch / "results/b.nii.gz"
    if fault == "spacing":
        save(bad, cube(5), AFFINE + np.diag([0.0, 0.0, 0.5, 0.0]))
    elif fault == "half a voxel":
        save_off_grid(bad)
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


def test_evaluate_paths_that_cannot_be_paired_are_refused(batch: Path) -> None:
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
        EvaluateConfig(prediction=Path("p"), reference=Path("r"), output=Path("report.csv"))
    with pytest.raises(UsageError):
        EvaluateConfig(prediction=Path("p"), reference=Path("r"), output=Path("report.json"), tolerance=0.0)
    with pytest.raises(UsageError):
        EvaluateConfig(output=Path("report.json"))


def test_evaluate_command_line_emits_events_and_returns_3_for_a_bad_case(batch: Path) -> None:
    save_off_grid(batch / "results/b.nii.gz")
    arguments = [
        "--prediction",
        batch / "results",
        "--reference",
        batch / "dataset/labelsTr",
        "--output",
        batch / "r.json",
    ]
    line = [sys.executable, "-m", "HiEndMAECore.evaluate", *map(str, arguments)]
    process = subprocess.run([*line, "--events"], capture_output=True, text=True)
    received = [events.decode(row) for row in process.stdout.splitlines()]
    assert process.returncode == 3
    assert None not in received
    assert received[0]["event"] == "started"
    assert (received[-1]["event"], received[-1]["code"]) == ("failed", "some_cases_failed")
    unpaired = [row["message"] for row in received if row["event"] == "warning"][:2]
    assert [message.rpartition(": ")[2] for message in unpaired] == ["c.", "extra."]
    means = {(row["structure"], row["name"]): row["value"] for row in received if row["event"] == "metric"}
    assert means["liver", "dice"] == 1.0
    assert means["colon", "dice"] is None
    assert [(row["step"], row["total"]) for row in received if row["event"] == "progress"][-1] == (3, 3)

    save(batch / "results/b.nii.gz", cube(5))
    process = subprocess.run(line, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "")
    assert "liver" in process.stderr
    assert "1 missed" in process.stderr


def test_evaluate_phantom_scores_each_organ(tmp_path: Path) -> None:
    _, labels = make_patient(1, shape=(56, 48, 48), spacing=(6.0, 6.0, 6.0))
    reference = save(tmp_path / "reference.nii.gz", labels.array[0], labels.affine)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {one.name: one.value for one in PHANTOM_STRUCTURES}}))
    report, _ = evaluate_in(tmp_path, prediction=reference, reference=reference)
    assert [row["name"] for row in report["structures"]] == [one.name for one in PHANTOM_STRUCTURES]
    assert all(row["dice"] == row["nsd"] == 1.0 for row in report["cases"])
    moved = save(tmp_path / "moved.nii.gz", np.roll(labels.array[0], 1, axis=0), labels.affine)
    report, _ = evaluate_in(tmp_path, prediction=moved, reference=reference)
    assert all(row["hd95_mm"] == 6.0 and 0.3 < row["dice"] < 1.0 for row in report["cases"])

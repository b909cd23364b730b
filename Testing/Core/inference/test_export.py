"""Result files: when a result is up to date, and what its report says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from inference_helpers import ARGUMENTS, label_bytes, segment_config, write_scan, write_untrained_model

from HiEndMAECore.errors import InputError
from HiEndMAECore.inference import export
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.models.folder import read_description, write_model
from HiEndMAECore.networks import UNETR
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.segment import run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_model(tmp_path_factory.mktemp("models") / "model")


def write_times(folder: Path) -> dict[str, int]:
    """Return the time of the last change of every label map in a folder."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nii.gz")}


def read_report(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_rerun_computes_only_missing_and_changed_cases(model: Path, tmp_path: Path) -> None:
    for index in range(4):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    out = tmp_path / "out"
    config = segment_config(model, tmp_path / "in", out)
    assert sorted(run(config)) == ["0", "1", "2", "3"]
    first = write_times(out)
    (out / "2.nii.gz").unlink()
    write_scan(tmp_path / "in" / "3.nii.gz", seed=77, shape=(21, 20, 20))  # another scan of the same name
    assert sorted(run(config)) == ["0", "1", "2", "3"]
    second = write_times(out)
    assert {name for name in second if second[name] != first.get(name)} == {"2.nii.gz", "3.nii.gz"}
    assert read_label_map(out / "3.nii.gz", allow_empty=True).shape == (21, 20, 20)
    run(segment_config(model, tmp_path / "in", out, clean=True))  # other options
    third = write_times(out)
    assert all(third[name] != second[name] for name in third)
    run(segment_config(model, tmp_path / "in", out, clean=True, overwrite=True))
    fourth = write_times(out)
    assert all(fourth[name] != third[name] for name in third)


def test_rerun_with_scans_of_the_same_names_sizes_and_times_computes_them(model: Path, tmp_path: Path) -> None:
    """Archives may give all files one time of change, and uncompressed scans of one shape have one size."""
    for folder in ("a", "b"):
        for index in range(2):
            scan = write_scan(tmp_path / folder / f"{index}.nii", seed=10 * index + ord(folder))
            os.utime(scan, ns=(10**18, 10**18))
    run(segment_config(model, tmp_path / "a", tmp_path / "out"))
    run(segment_config(model, tmp_path / "b", tmp_path / "out"))
    run(segment_config(model, tmp_path / "b", tmp_path / "expected"))
    assert label_bytes(tmp_path / "out") == label_bytes(tmp_path / "expected")
    before = write_times(tmp_path / "out")
    run(segment_config(model, tmp_path / "b", tmp_path / "out"))
    assert write_times(tmp_path / "out") == before


@pytest.mark.parametrize("interrupted", ["write_scalar_map", "write_label_map", "write_text"])
def test_rerun_with_another_model_computes_every_case_even_after_an_interruption(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """The first run with the other model ends while it writes."""
    for index in range(2):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    other = tmp_path / "other"
    torch.manual_seed(1)
    write_model(other, read_description(model), UNETR(**ARGUMENTS).state_dict())  # other weights
    run(segment_config(other, tmp_path / "in", tmp_path / "expected", uncertainty=True))
    run(segment_config(model, tmp_path / "in", tmp_path / "out", uncertainty=True))
    assert label_bytes(tmp_path / "out") != label_bytes(tmp_path / "expected")

    def full_disk(*_: object, **__: object) -> None:
        raise InputError("output_unwritable", "The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(export, interrupted, full_disk)
        with pytest.raises(InputError):
            run(segment_config(other, tmp_path / "in", tmp_path / "out", uncertainty=True))
    run(segment_config(other, tmp_path / "in", tmp_path / "out", uncertainty=True))
    assert label_bytes(tmp_path / "out") == label_bytes(tmp_path / "expected")
    digest = read_description(other).model_sha256
    for index in range(2):
        assert read_report(tmp_path / "out" / f"{index}.json")["model_sha256"] == digest


def test_rerun_with_a_changed_description_computes_every_case(model: Path, tmp_path: Path) -> None:
    for index in range(2):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    changed = tmp_path / "model"
    shutil.copytree(model, changed)
    run(segment_config(changed, tmp_path / "in", tmp_path / "out"))
    assert 7 not in read_label_map(tmp_path / "out" / "0.nii.gz").array
    description = json.loads((changed / "model.json").read_text(encoding="utf-8"))
    description["labels"][0]["value"] = 7
    (changed / "model.json").write_text(json.dumps(description), encoding="utf-8")
    run(segment_config(changed, tmp_path / "in", tmp_path / "out"))
    for index in range(2):
        values = np.unique(read_label_map(tmp_path / "out" / f"{index}.nii.gz").array)
        assert 3 not in values
        assert 7 in values


def edit_report(path: Path, **changes: Any) -> None:
    """Change entries of a report; None removes an entry."""
    report = {**read_report(path), **changes}
    path.write_text(json.dumps({key: value for key, value in report.items() if value is not None}), encoding="utf-8")


def test_rerun_computes_damaged_results(model: Path, tmp_path: Path) -> None:
    names = (
        *("emptied", "cut", "changed", "gone", "half", "no_digest", "no_format", "newer_format", "odd_files"),
        *("odd_input", "no_object", "whole"),
    )
    for index, name in enumerate(names):
        write_scan(tmp_path / "in" / f"{name}.nii.gz", seed=index)
    out = tmp_path / "out"
    config = segment_config(model, tmp_path / "in", out, uncertainty=True)
    run(config)
    before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    stamps = write_times(out)
    (out / "emptied.nii.gz").write_bytes(b"")
    (out / "cut.nii.gz").write_bytes(before["cut.nii.gz"][:40])
    changed = bytearray(before["changed.nii.gz"])
    changed[len(changed) // 2] ^= 4
    (out / "changed.nii.gz").write_bytes(changed)
    os.utime(out / "changed.nii.gz", ns=(stamps["changed.nii.gz"],) * 2)
    (out / "gone.nii.gz").unlink()
    (out / "half_entropy.nii.gz").unlink()
    edit_report(out / "no_digest.json", model_sha256=None)
    edit_report(out / "no_format.json", format=None)
    edit_report(out / "newer_format.json", format=3)
    edit_report(out / "odd_files.json", files=[3, None])
    edit_report(out / "odd_input.json", input=[{"sha256": 5}])
    (out / "no_object.json").write_text("[]", encoding="utf-8")
    run(config)
    after = {path.name: read_volume(path).array for path in out.glob("*.nii.gz")}
    assert after.keys() == before.keys()
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(after[name], read_volume(tmp_path / name).array)
    computed = {name for name, stamp in stamps.items() if (out / name).stat().st_mtime_ns != stamp}
    assert {name for name in computed if "_entropy." not in name} == {
        f"{name}.nii.gz" for name in names if name != "whole"
    }


def test_report_holds_volumes_confidence_review_slices_and_warnings(model: Path, tmp_path: Path) -> None:
    affine = np.diag([1.0, 4.0, 4.0, 1.0])
    array = np.random.default_rng(0).normal(40, 60, (80, 20, 50)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "long.nii.gz")
    report = Reporter(quiet=True)
    run(segment_config(model, tmp_path / "long.nii.gz", tmp_path / "out", smallest=1.0, fill_holes=True), report)
    record = read_report(tmp_path / "out" / "long.json")
    assert record["format"] == 2
    assert record["model_sha256"] == read_description(model).model_sha256
    assert [entry["name"] for entry in record["files"]] == ["long.nii.gz"]
    assert [row["name"] for row in record["structures"]] == ["liver", "spleen"]
    assert any(row["confidence"] is not None for row in record["structures"])
    for row in record["structures"]:
        assert row["confidence"] is None or 1 / 3 <= row["confidence"] <= 1
    assert all(0 <= index < 50 for index in record["review_slices"])
    assert all(abs(a - b) * 4 >= 10 for a in record["review_slices"] for b in record["review_slices"] if a != b)
    codes = [warning["code"] for warning in record["warnings"]]
    assert codes == ["spacing_unlike", "field_of_view_unlike"]  # 1 mm instead of 4, 200 mm instead of 80
    assert [warning["code"] for warning in report.warnings] == codes
    assert "long: " in report.warnings[0]["message"]
    assert record["seconds_of_parts"].keys() == {"read", "compute", "write"}


def test_report_of_a_scan_without_orientation_warns(model: Path, tmp_path: Path) -> None:
    image = nib.load(write_scan(tmp_path / "scan.nii.gz"))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "lost.nii.gz")
    report = Reporter(quiet=True)
    run(segment_config(model, tmp_path / "lost.nii.gz", tmp_path / "out"), report)
    record = read_report(tmp_path / "out" / "lost.json")
    assert "orientation_missing" in [warning["code"] for warning in record["warnings"]]
    assert "orientation_missing" in [warning["code"] for warning in report.warnings]

"""Batch of cases: unusable scans, outputs among the inputs, interruption, older results, many processes."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bare_python import REPOSITORY
from dicom_series import write_series
from inference_helpers import segment_config, write_scan, write_untrained_model

from HiEndMAECore.errors import HiEndMAEError, InputError, UsageError
from HiEndMAECore.inference import export
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import read_description, read_weights, write_model
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.segment import run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def other_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with other values for its structures, and so with another digest."""
    path = tmp_path_factory.mktemp("models") / "other"
    description = read_description(model)
    labels = [{**label, "value": int(label["value"]) + 1} for label in description.labels]
    changed = ModelDescription(**{**vars(description), "labels": labels})
    write_model(path, changed, read_weights(model, description))
    return path


def write_unusable_scan(folder: Path, index: int) -> None:
    """Write a scan that cannot be used; there are eleven kinds."""
    name = folder / f"bad_{index:02d}.nii.gz"
    whole = write_scan(folder / "whole.nii.gz", seed=index)
    content, array = whole.read_bytes(), np.zeros((20, 20, 20), np.float32)
    whole.unlink()
    kind = index % 11
    if kind == 0:
        name.write_bytes(b"")
    elif kind == 1:
        name.write_bytes(content[: len(content) // 2])
    elif kind == 2:
        name.write_text("this is no scan")
    elif kind == 3:
        nib.save(nib.Nifti1Image(np.full_like(array, np.nan), np.eye(4)), name)
    elif kind == 4:
        nib.save(nib.Nifti1Image(np.zeros((20, 20, 20, 3), np.int16), np.eye(4)), name)  # three frames
    elif kind == 5:
        nib.save(nib.Nifti1Image(array[:, :, 0], np.eye(4)), name)
    elif kind == 6:
        raw = bytearray(gzip.decompress(content))
        raw[70:72] = (999).to_bytes(2, "little")  # an unknown voxel type
        name.write_bytes(gzip.compress(bytes(raw)))
    elif kind == 7:
        name.with_name(f"bad_{index:02d}.nrrd").write_text("NRRD0004\ntype: float\ndimension: 3\nsizes: 2 2 2\n\nx")
    elif kind == 8:
        series = folder / f"bad_{index:02d}"
        write_series(series, np.array([[0, 0, z] for z in range(5)]), uid="1.2.3")
        write_series(series, np.array([[0, 0, z] for z in range(5)]), uid="1.2.4", prefix="other")
    elif kind == 9:
        nib.save(nib.Nifti1Image(np.full_like(array, np.inf), np.eye(4)), name)
    else:
        name.write_bytes(gzip.compress(b"\0" * 400))


def test_batch_with_unusable_scans_segments_all_others(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(75):
        write_scan(tmp_path / "in" / f"good_{index:02d}.nii.gz", seed=index)
    for index in range(25):
        write_unusable_scan(tmp_path / "in", index)
    report = Reporter()
    with pytest.raises(InputError, match="75 of 100 scans were segmented") as caught:
        run(segment_config(model, tmp_path / "in", tmp_path / "out"), report)
    assert caught.value.code == "some_cases_failed"
    assert caught.value.exit_code == 3
    assert len(list((tmp_path / "out").glob("good_*.nii.gz"))) == 75
    assert sorted({path.name[:4] for path in (tmp_path / "out").iterdir()}) == ["good"]
    skipped = [warning for warning in report.warnings if "was skipped" in warning["message"]]
    assert len(skipped) == 25
    assert all(warning["advice"] for warning in skipped)
    assert len({warning["code"] for warning in skipped}) >= 6
    table = capsys.readouterr().err.splitlines()  # one row for each scan, sorted
    rows = [line.split()[:2] for line in table if line.startswith("  ")]
    assert rows == [[f"bad_{n:02d}", "skipped:"] for n in range(25)] + [[f"good_{n:02d}", "done"] for n in range(75)]


def test_batch_of_one_scan_raises_its_own_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("no scan")
    with pytest.raises(HiEndMAEError) as caught:
        run(segment_config(model, tmp_path / "text.nii.gz", tmp_path / "out.nii.gz"))
    assert caught.value.code == "not_a_volume"


def older_result_messages(report: Reporter) -> list[str]:
    return [warning["message"] for warning in report.warnings if warning["code"] == "older_result"]


def test_failed_case_names_the_older_result_of_another_model(
    model: Path, other_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scan was segmented, is now unreadable, and its label map is from another model than those beside it."""
    for index in range(3):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    run(segment_config(other_model, tmp_path / "in", tmp_path / "out"))
    older = (tmp_path / "out" / "1.nii.gz").read_bytes()
    (tmp_path / "in" / "1.nii.gz").write_text("no scan any more")
    report = Reporter()
    with pytest.raises(InputError, match="2 of 3 scans"):
        run(segment_config(model, tmp_path / "in", tmp_path / "out"), report)
    assert (tmp_path / "out" / "1.nii.gz").read_bytes() == older
    sentence = f"An older result of another model is still there: {tmp_path / 'out' / '1.nii.gz'}."
    assert older_result_messages(report) == [f"1 could not be segmented. {sentence}"]
    row = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("  1 "))
    assert sentence in row


def test_failed_single_scan_names_the_older_result(model: Path, other_model: Path, tmp_path: Path) -> None:
    scan, output = write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out.nii.gz"
    for first, origin in ((other_model, "another model"), (model, "this model")):
        write_scan(scan)
        run(segment_config(first, scan, output))
        scan.write_text("no scan any more")
        report = Reporter(quiet=True)
        with pytest.raises(InputError, match=r"scan\.nii\.gz"):
            run(segment_config(model, scan, output), report)
        assert older_result_messages(report) == [
            f"scan could not be segmented. An older result of {origin} is still there: {output}."
        ]
    (tmp_path / "out.json").unlink()
    report = Reporter(quiet=True)
    with pytest.raises(InputError):
        run(segment_config(model, scan, output), report)
    assert "An older result of an unknown model is still there" in older_result_messages(report)[0]


def test_failed_case_without_an_older_result_names_none(
    model: Path, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where there was no result, nor where this run wrote the label map and failed at the report."""
    for index in range(2):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    (tmp_path / "in" / "text.nii.gz").write_text("no scan")
    with pytest.raises(InputError):
        run(segment_config(other_model, tmp_path / "in", tmp_path / "out"))

    def full_disk(*_: object, **__: object) -> None:
        raise InputError("output_unwritable", "The disk is full.")

    monkeypatch.setattr(export, "write_text", full_disk)
    report = Reporter(quiet=True)
    with pytest.raises(InputError, match="0 of 3 scans"):
        run(segment_config(model, tmp_path / "in", tmp_path / "out"), report)
    assert older_result_messages(report) == []


def test_output_that_would_replace_a_scan_is_refused(model: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    before = scan.read_bytes()
    for scans, output in ((tmp_path / "in", tmp_path / "in"), (scan, scan), (scan, tmp_path / "in")):
        with pytest.raises(UsageError) as caught:
            run(segment_config(model, scans, output))
        assert caught.value.code == "output_is_input"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.nii.gz"]
    assert scan.read_bytes() == before


def test_output_folder_among_the_scans_is_not_segmented(model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz")
    write_scan(tmp_path / "in" / "b.nii.gz")
    (tmp_path / "in" / "Segmentation.seg.nrrd").write_bytes(b"what Slicer saves beside a scan")
    config = segment_config(model, tmp_path / "in", tmp_path / "in" / "results", uncertainty=True)
    assert sorted(run(config)) == sorted(run(config)) == ["a", "b"]
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match="contains only segmentations"):
        run(config)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_batch_that_was_killed_continues_where_it_ended(model: Path, tmp_path: Path) -> None:
    for index in range(10):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index, shape=(40, 40, 40))
    out = tmp_path / "out"
    command = [
        *(sys.executable, "-m", "HiEndMAECore.segment", "--model", model, "--input", tmp_path / "in"),
        *("--output", out, "--device", "cpu"),
    ]
    process = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while len(list(out.glob("[0-9].nii.gz"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reports = {path.stem for path in out.glob("[0-9].json")}  # the last label map may not have its report yet
    complete = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9].nii.gz") if path.name[0] in reports}
    assert 2 <= len(complete) < 10
    for name in complete:
        assert nib.load(out / name).get_fdata().shape == (40, 40, 40)
    run(segment_config(model, tmp_path / "in", out))
    # The kill may have left a temporary file, whose name starts with a dot.
    stamps = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if not path.name.startswith(".")}
    assert all(stamps[name] == complete[name] for name in complete)
    assert sorted(stamps) == sorted(f"{index}.{suffix}" for index in range(10) for suffix in ("json", "nii.gz"))


def test_batch_of_two_processes_is_divided_and_reported_by_both(model: Path, tmp_path: Path) -> None:
    for index in range(5):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    (tmp_path / "in" / "bad.nii.gz").write_text("no scan")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29533),
        *("-m", "HiEndMAECore.segment", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out"),
        *("--device", "cpu"),
    ]
    result = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode != 0
    assert result.stderr.count("5 of 6 scans were segmented") == 2  # each process knows the outcome of all
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [f"{n}.nii.gz" for n in range(5)]

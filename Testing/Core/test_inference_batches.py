"""Batches: kept moving, one bad scan skipped, killed and run again, shared by processes; and what reports tell."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_series import write_series

from HiEndMAECore.data.cases import find_cases
from HiEndMAECore.data.fingerprint import scan_fingerprint
from HiEndMAECore.errors import Cancelled, HiEndMAEError, InputError, MissingDependencyError, UsageError
from HiEndMAECore.inference import export
from HiEndMAECore.inference.batch_pipeline import gather_rows, run_pipeline, shard
from HiEndMAECore.inference.predictor import Predictor
from HiEndMAECore.inference.quality import compare_with_training_data
from HiEndMAECore.inference.uncertainty import slices_to_review
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.io.writers import write_scalar_map
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import read_description, read_weights, write_model
from HiEndMAECore.networks import UNETR
from HiEndMAECore.preprocessing.pipeline import NetworkGrid, PreprocessingPlan
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.segment import FORMATS, SegmentConfig, run

REPOSITORY = Path(__file__).resolve().parents[2]
ARGUMENTS = {
    "image_size": (16, 16, 16), "patch_size": 8, "in_channels": 1, "classes": 3, "encoder_dim": 24, "encoder_depth": 4,
    "encoder_heads": 2, "feature_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network that has learned nothing, and says it learned from one scan of 4 mm."""
    path = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    taught = {"spacing_mm": [4, 4, 4], "extent_mm": [80, 80, 80], "intensities": [[0.4, 0.5, 0.6]]}
    description = ModelDescription(
        kind="segmentation", name="test", architecture={"network": "UNETR", "variant": "", "arguments": ARGUMENTS},
        channels=["ct"], labels=[{"value": 3, "name": "liver"}, {"value": 9, "name": "spleen"}],
        preparation={"spacing": [4.0] * 3, "normalisation": {"kind": "window", "low": -175.0, "high": 250.0}},
        training={"teaching": [taught]},
    )  # fmt: skip
    write_model(path, description, UNETR(**ARGUMENTS).state_dict())  # type: ignore[arg-type]
    return path


def write_scan(path: Path, *, seed: int = 0, shape: tuple[int, ...] = (20, 20, 20), spacing: float = 4.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(40, 60, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([spacing] * 3 + [1.0])), path)
    return path


def config(model: Path, scans: Path, output: Path, **options: object) -> SegmentConfig:
    return SegmentConfig(model=model, input=(str(scans),), output=output, device="cpu", **options)  # type: ignore[arg-type]


def spoil(folder: Path, index: int) -> None:
    """An unusable scan; eleven ways."""
    name = folder / f"bad_{index:02d}.nii.gz"
    whole = write_scan(folder / "whole.nii.gz", seed=index)
    content, array = whole.read_bytes(), np.zeros((20, 20, 20), np.float32)
    whole.unlink()
    way = index % 11
    if way == 0:
        name.write_bytes(b"")
    elif way == 1:
        name.write_bytes(content[: len(content) // 2])
    elif way == 2:
        name.write_text("this is no scan")
    elif way == 3:
        nib.save(nib.Nifti1Image(np.full_like(array, np.nan), np.eye(4)), name)
    elif way == 4:
        nib.save(nib.Nifti1Image(np.zeros((20, 20, 20, 3), np.int16), np.eye(4)), name)  # three frames
    elif way == 5:
        nib.save(nib.Nifti1Image(array[:, :, 0], np.eye(4)), name)
    elif way == 6:
        raw = bytearray(gzip.decompress(content))
        raw[70:72] = (999).to_bytes(2, "little")  # a type of voxels that nobody knows
        name.write_bytes(gzip.compress(bytes(raw)))
    elif way == 7:
        name.with_name(f"bad_{index:02d}.nrrd").write_text("NRRD0004\ntype: float\ndimension: 3\nsizes: 2 2 2\n\nx")
    elif way == 8:
        place = folder / f"bad_{index:02d}"
        write_series(place, np.array([[0, 0, z] for z in range(5)]), uid="1.2.3")
        write_series(place, np.array([[0, 0, z] for z in range(5)]), uid="1.2.4", prefix="other")
    elif way == 9:
        nib.save(nib.Nifti1Image(np.full_like(array, np.inf), np.eye(4)), name)
    else:
        name.write_bytes(gzip.compress(b"\0" * 400))


def test_a_batch_of_many_faults(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(75):
        write_scan(tmp_path / "in" / f"good_{index:02d}.nii.gz", seed=index)
    for index in range(25):
        spoil(tmp_path / "in", index)
    report = Reporter()
    with pytest.raises(InputError, match="75 of 100 scans were segmented") as caught:
        run(config(model, tmp_path / "in", tmp_path / "out"), report)
    assert caught.value.exit_code == 3
    assert len(list((tmp_path / "out").glob("good_*.nii.gz"))) == 75
    assert sorted({path.name[:4] for path in (tmp_path / "out").iterdir()}) == ["good"]
    skipped = [warning for warning in report.warnings if "was skipped" in warning["message"]]
    assert len(skipped) == 25
    assert all(warning["advice"] for warning in skipped)
    assert len({warning["code"] for warning in skipped}) >= 6
    table = capsys.readouterr().err.splitlines()  # a row a scan, in order
    rows = [line.split()[:2] for line in table if line.startswith("  ")]
    assert rows == [[f"bad_{n:02d}", "skipped:"] for n in range(25)] + [[f"good_{n:02d}", "done"] for n in range(75)]


def test_a_rerun_does_only_what_is_missing(model: Path, tmp_path: Path) -> None:
    for index in range(4):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)

    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}

    wanted = config(model, tmp_path / "in", tmp_path / "out")
    assert sorted(run(wanted)) == ["0", "1", "2", "3"]
    first = written()
    (tmp_path / "out" / "2.nii.gz").unlink()
    write_scan(tmp_path / "in" / "3.nii.gz", seed=77, shape=(21, 20, 20))  # another scan of the same name
    assert sorted(run(wanted)) == ["0", "1", "2", "3"]
    second = written()
    assert {name for name in second if second[name] != first.get(name)} == {"2.nii.gz", "3.nii.gz"}
    assert read_label_map(tmp_path / "out" / "3.nii.gz", allow_empty=True).shape == (21, 20, 20)
    run(config(model, tmp_path / "in", tmp_path / "out", clean=True))  # other options, other results
    third = written()
    assert all(third[name] != second[name] for name in third)
    run(config(model, tmp_path / "in", tmp_path / "out", clean=True, overwrite=True))
    assert all(written()[name] != third[name] for name in third)


def other_model(model: Path, path: Path) -> Path:
    """A model with the same description and other weights."""
    torch.manual_seed(1)
    write_model(path, read_description(model), UNETR(**ARGUMENTS).state_dict())  # type: ignore[arg-type]
    return path


def labels_in(folder: Path) -> dict[str, bytes]:
    """The label maps in a folder, by name."""
    return {path.name: read_label_map(path, allow_empty=True).array.tobytes() for path in folder.glob("?.nii.gz")}


@pytest.mark.parametrize("interrupted", ["write_scalar", "write_labels", "write_text"])
def test_a_result_is_never_taken_for_that_of_another_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    """A run with another model ends while it writes; the next run with it makes every result again."""
    for index in range(2):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    other = other_model(model, tmp_path / "other")
    run(config(other, tmp_path / "in", tmp_path / "expected", uncertainty=True))
    run(config(model, tmp_path / "in", tmp_path / "out", uncertainty=True))
    assert labels_in(tmp_path / "out") != labels_in(tmp_path / "expected")

    def stopped(*_: object, **__: object) -> None:
        raise InputError("output_unwritable", "The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(export, interrupted, stopped)
        with pytest.raises(InputError):
            run(config(other, tmp_path / "in", tmp_path / "out", uncertainty=True))
    run(config(other, tmp_path / "in", tmp_path / "out", uncertainty=True))
    assert labels_in(tmp_path / "out") == labels_in(tmp_path / "expected")
    digest = read_description(other).model_sha256
    for index in range(2):
        record = json.loads((tmp_path / "out" / f"{index}.json").read_text(encoding="utf-8"))
        assert record["model_sha256"] == digest


def test_a_result_of_another_description_is_made_again(model: Path, tmp_path: Path) -> None:
    for index in range(2):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    changed = tmp_path / "model"
    shutil.copytree(model, changed)
    run(config(changed, tmp_path / "in", tmp_path / "out"))
    assert 7 not in read_label_map(tmp_path / "out" / "0.nii.gz").array
    description = json.loads((changed / "model.json").read_text(encoding="utf-8"))
    description["labels"][0]["value"] = 7
    (changed / "model.json").write_text(json.dumps(description), encoding="utf-8")
    run(config(changed, tmp_path / "in", tmp_path / "out"))
    for index in range(2):
        values = np.unique(read_label_map(tmp_path / "out" / f"{index}.nii.gz").array)
        assert 3 not in values
        assert 7 in values


def test_a_result_that_was_damaged_is_made_again(model: Path, tmp_path: Path) -> None:
    names = ("emptied", "cut", "changed", "gone", "half", "old_report", "odd_report", "whole")
    for index, name in enumerate(names):
        write_scan(tmp_path / "in" / f"{name}.nii.gz", seed=index)
    out = tmp_path / "out"
    wanted = config(model, tmp_path / "in", out, uncertainty=True)
    run(wanted)
    before = {path.name: path.read_bytes() for path in out.glob("*.nii.gz")}
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    (out / "emptied.nii.gz").write_bytes(b"")
    (out / "cut.nii.gz").write_bytes(before["cut.nii.gz"][:40])
    changed = bytearray(before["changed.nii.gz"])
    changed[len(changed) // 2] ^= 4
    (out / "changed.nii.gz").write_bytes(changed)
    os.utime(out / "changed.nii.gz", ns=(stamps["changed.nii.gz"],) * 2)
    (out / "gone.nii.gz").unlink()
    (out / "half_entropy.nii.gz").unlink()
    old = json.loads((out / "old_report.json").read_text(encoding="utf-8"))
    (out / "old_report.json").write_text(json.dumps({key: old[key] for key in old if key != "model_sha256"}))
    odd = json.loads((out / "odd_report.json").read_text(encoding="utf-8"))
    (out / "odd_report.json").write_text(json.dumps({**odd, "files": [3, None]}))
    run(wanted)
    after = {path.name: read_volume(path).array for path in out.glob("*.nii.gz")}
    assert after.keys() == before.keys()
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(after[name], read_volume(tmp_path / name).array)
    again = {name for name, stamp in stamps.items() if (out / name).stat().st_mtime_ns != stamp}
    assert {name for name in again if "_entropy." not in name} == {
        f"{name}.nii.gz" for name in names if name != "whole"
    }


def test_no_result_takes_the_place_of_a_scan(model: Path, tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "in" / "a.nii.gz")
    before = scan.read_bytes()
    for scans, output in ((tmp_path / "in", tmp_path / "in"), (scan, scan), (scan, tmp_path / "in")):
        with pytest.raises(UsageError) as caught:
            run(config(model, scans, output))
        assert caught.value.code == "output_is_input"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.nii.gz"]
    assert scan.read_bytes() == before


def test_results_among_the_scans_are_no_scans(model: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "in" / "a.nii.gz")
    write_scan(tmp_path / "in" / "b.nii.gz")
    (tmp_path / "in" / "Segmentation.seg.nrrd").write_bytes(b"what Slicer saves beside a scan")
    wanted = config(model, tmp_path / "in", tmp_path / "in" / "results", uncertainty=True)
    assert sorted(run(wanted)) == sorted(run(wanted)) == ["a", "b"]
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.nii.gz").unlink()
    with pytest.raises(InputError, match="segmentations alone"):
        run(wanted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_in_the_middle_of_a_batch(model: Path, tmp_path: Path) -> None:
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
    reports = {path.stem for path in out.glob("[0-9].json")}  # of the last map, the report may not be there yet
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("[0-9].nii.gz") if path.name[0] in reports}
    assert 2 <= len(there) < 10
    for name in there:
        assert nib.load(out / name).get_fdata().shape == (40, 40, 40)
    run(config(model, tmp_path / "in", out))
    now = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert all(now[name] == there[name] for name in there)
    assert sorted(now) == sorted(f"{index}.{kind}" for index in range(10) for kind in ("json", "nii.gz"))


def test_processes_share_a_folder(model: Path, tmp_path: Path) -> None:
    for index in range(5):
        write_scan(tmp_path / "in" / f"{index}.nii.gz", seed=index)
    (tmp_path / "in" / "bad.nii.gz").write_text("no scan")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29533),
        *("-m", "HiEndMAECore.segment", "--model", model, "--input", tmp_path / "in", "--output", tmp_path / "out"),
        *("--device", "cpu"),
    ]
    told = subprocess.run(
        list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert told.returncode != 0
    assert told.stderr.count("5 of 6 scans were segmented") == 2  # each process knows of all
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [f"{n}.nii.gz" for n in range(5)]


def test_every_case_is_someones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shard([1, 2, 3]) == [1, 2, 3]
    assert gather_rows([1, 2]) == [1, 2]
    monkeypatch.setenv("WORLD_SIZE", "3")
    taken: list[int] = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        taken += shard(list(range(8)))
    assert sorted(taken) == list(range(8))


# -- the conveyor ------------------------------------------------------------------------------------------------


def test_the_next_is_read_and_the_last_written_while_one_is_computed() -> None:
    """Reading 2 waits for the computing of 1 to have begun, which waits for the reading of 2 to have begun."""
    reading, computing, log = threading.Event(), threading.Event(), []

    def read(item: int) -> int:
        if item == 2:
            reading.set()
            assert computing.wait(10)
        return item

    def compute(item: int, given: int) -> int:
        computing.set()
        assert reading.wait(10)
        return given * 10

    def finish(item: int, computed: int) -> int:
        log.append((item, threading.current_thread().name))
        return computed + 1

    told = run_pipeline(
        [1, 2, 3], read=read, compute=compute, finish=finish, beside=lambda _: True, report=Reporter(quiet=True)
    )
    assert list(told) == [(1, 11), (2, 21), (3, 31)]
    assert [item for item, _ in log] == [1, 2, 3]
    assert all(name.startswith("writer") for _, name in log)


@pytest.mark.parametrize("together", [True, False])
def test_unusable_items_are_passed_over_wherever_they_fail(together: bool) -> None:
    def failing(stage: str) -> object:
        def work(item: str, *given: object) -> str:
            if item == stage:
                raise MemoryError if stage == "compute" else InputError("bad", f"{stage} failed")
            return item

        return work

    items = ["read", "a", "compute", "b", "finish", "c"]
    stages = {stage: failing(stage) for stage in ("read", "compute", "finish")}
    told = dict(run_pipeline(items, **stages, beside=lambda _: together, report=Reporter(quiet=True)))  # type: ignore[arg-type]
    assert sorted(told) == sorted(items)
    assert [item for item in items if told[item] == item] == ["a", "b", "c"]
    assert {item: told[item].code for item in stages} == {  # type: ignore[attr-defined]
        "read": "bad", "compute": "out_of_memory", "finish": "bad",
    }  # fmt: skip


def test_cancelling_completes_what_is_being_written() -> None:
    report, written = Reporter(quiet=True), []

    def finish(item: int, computed: int) -> None:
        report.cancel()
        time.sleep(0.3)
        written.append(item)

    def compute(item: int, given: int) -> int:
        if item == 2:
            time.sleep(0.1)
            report.check()
        return item

    with pytest.raises(Cancelled):
        list(
            run_pipeline(
                [1, 2, 3], read=lambda i: i, compute=compute, finish=finish, beside=lambda _: True, report=report
            )
        )
    assert written == [1]


def test_a_fault_of_ours_is_not_taken_for_a_bad_scan() -> None:
    def finish(item: int, computed: int) -> None:
        raise ZeroDivisionError

    told = run_pipeline(
        [1, 2],
        read=lambda i: i,
        compute=lambda i, _: i,
        finish=finish,
        beside=lambda _: True,
        report=Reporter(quiet=True),
    )
    with pytest.raises(ZeroDivisionError):
        list(told)


# -- formats -----------------------------------------------------------------------------------------------------


def test_every_format_and_place_gives_the_same_labels(model: Path, tmp_path: Path) -> None:
    """One scan as NIfTI, NRRD, MHA and DICOM, given as a folder tree and as a list: the same labels in space."""
    scan = dicom_scan(tmp_path / "tree" / "deep" / "as dicom")
    volume = read_volume(scan)
    for name in ("a.nii.gz", "b.nii", "c.nrrd", "deep/d.mha"):
        write_scalar_map(tmp_path / "tree" / name, volume.array[0], volume.geometry)
    names = {"a", "b", "c", "d", "as dicom"}
    run(config(model, tmp_path / "tree", tmp_path / "from tree"))
    (tmp_path / "list.txt").write_text("\n".join(str(tmp_path / "tree" / name) for name in ("c.nrrd", "deep/as dicom")))
    run(config(model, tmp_path / "list.txt", tmp_path / "from list"))
    assert {path.name for path in (tmp_path / "from tree").glob("*.nii.gz")} == {f"{name}.nii.gz" for name in names}
    assert {path.name for path in (tmp_path / "from list").glob("*.nii.gz")} == {"c.nii.gz", "as dicom.nii.gz"}
    results = [read_label_map(path) for path in tmp_path.glob("from */*.nii.gz")]
    assert len(results) == 7
    assert {3, 9} & set(np.unique(results[0].array))
    for result in results:
        np.testing.assert_allclose(result.affine, volume.affine, atol=1e-4)
        np.testing.assert_array_equal(result.array, results[0].array)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "dcm"])
def test_every_format_out_holds_the_same_labels(model: Path, tmp_path: Path, kind: str) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(20, 18, 12))
    run(config(model, scan, tmp_path / "plain"))
    run(config(model, scan, tmp_path / "asked", format=kind, uncertainty=True))
    expected = read_label_map(tmp_path / "plain" / "scan.nii.gz")
    made = read_label_map(tmp_path / "asked" / f"scan.{kind}")
    np.testing.assert_array_equal(made.array, expected.array)
    np.testing.assert_allclose(made.affine, expected.affine, atol=1e-5)
    doubt = read_volume(tmp_path / "asked" / f"scan_entropy.{kind.removeprefix('seg.')}")
    assert doubt.shape == expected.shape
    assert 0 <= doubt.array.min() < doubt.array.max() <= 1.0001
    if kind == "seg.nrrd":
        header = sitk.ReadImage(str(tmp_path / "asked" / "scan.seg.nrrd"))
        assert [header.GetMetaData(f"Segment{n}_Name") for n in range(2)] == ["liver", "spleen"]
        assert all(len(header.GetMetaData(f"Segment{n}_Color").split()) == 3 for n in range(2))


def test_of_several_series_one_is_chosen(model: Path, tmp_path: Path) -> None:
    for uid, count in (("1.2.3", 12), ("1.2.4", 9)):
        heights = np.array([[0, 0, 4.0 * z] for z in range(count)])
        write_series(tmp_path / "scan", heights, uid=uid, prefix=uid, description=f"Series of {count}")
    with pytest.raises(InputError) as caught:
        run(config(model, tmp_path / "scan", tmp_path / "out.nii.gz"))
    assert caught.value.code == "several_series"
    assert all(part in caught.value.advice for part in ("1.2.3", "1.2.4", "Series of 9"))
    run(config(model, tmp_path / "scan", tmp_path / "out.nii.gz", series="1.2.4"))
    assert read_label_map(tmp_path / "out.nii.gz", allow_empty=True).shape == (40, 32, 9)


# -- DICOM in and out --------------------------------------------------------------------------------------------


def dicom_scan(folder: Path) -> Path:
    """A noisy series whose files are named against their order, with a localizer of another size among them."""
    rng = np.random.default_rng(0)
    heights = np.arange(12) * 4.0
    origins = np.stack([np.full(12, -30.0), np.full(12, -20.0), heights[::-1]], axis=1)
    uid = "1.2.826.0.1.3680043.8.498.1"
    write_series(folder, origins, spacing=(2.0, 2.5), uid=uid, value=lambda lps: rng.normal(40, 60, lps.shape[:-1]))
    write_series(folder, np.array([[0, 0, 90.0]]), size=(30, 30), uid=uid, prefix="scout", first_number=99)
    return folder


def test_a_dicom_segmentation_names_the_slices_it_was_drawn_on(model: Path, tmp_path: Path) -> None:
    hd = pytest.importorskip("highdicom", reason="highdicom is an extra")
    import pydicom

    scan = dicom_scan(tmp_path / "scan")
    run(config(model, scan, tmp_path / "as_nifti"))
    run(config(model, scan, tmp_path / "as_dicom", format="dcm"))
    drawn = read_label_map(tmp_path / "as_nifti" / "scan.nii.gz").array[0]
    assert (drawn > 0).any()
    seg = hd.seg.segread(tmp_path / "as_dicom" / "scan.dcm")
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == ["liver", "spleen"]
    files = [pydicom.dcmread(file) for file in sorted(scan.glob("slice_*.dcm"))]
    assert seg.StudyInstanceUID == files[0].StudyInstanceUID
    frames = seg.get_pixels_by_source_instance(
        [file.SOPInstanceUID for file in files], combine_segments=True, ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    heights = np.argsort([file.ImagePositionPatient[2] for file in files])
    expected = np.select([drawn == 3, drawn == 9], [1, 2])
    np.testing.assert_array_equal(frames[heights], expected.transpose(2, 1, 0))


def test_a_dicom_segmentation_is_no_scan_and_no_label_map(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="highdicom is an extra")
    scan = dicom_scan(tmp_path / "scan")
    run(config(model, scan, tmp_path / "out", format="dcm"))
    for path in (tmp_path / "out" / "scan.dcm", tmp_path / "out"):
        for read in (read_label_map, read_volume):
            with pytest.raises(InputError) as caught:
                read(path)
            assert caught.value.code == "dicom_segmentation"
            assert "scan.dcm" in caught.value.message
            assert caught.value.advice
    before = read_volume(scan)
    shutil.copy(tmp_path / "out" / "scan.dcm", scan / "drawn.dcm")  # beside its slices it is not a second series
    np.testing.assert_array_equal(read_volume(scan).array, before.array)
    with pytest.raises(InputError) as caught:
        read_label_map(scan / "drawn.dcm")
    assert caught.value.code == "dicom_segmentation"


def test_a_dicom_segmentation_needs_dicom_and_its_package(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(model, write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out", format="dcm")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingDependencyError, match="highdicom"):
        run(wanted)
    monkeypatch.setitem(sys.modules, "highdicom", object())
    with pytest.raises(InputError, match="is no DICOM series"):
        run(wanted)


SCANS = (
    "robustness/dicom_gantry_tilt",
    "robustness/dicom_jpeg2000/dicom",
    "robustness/orientation_pir",
    "robustness/anisotropic_padding_abdomen_ct.nii.gz",
    "abdomen/ct_abdomen_A/ct.nii.gz",
    "abdomen/ct_chest_B/ct.nii.gz",
    "abdomen/ct_chest_B/crop/ct_cropped.nii.gz",
    "abdomen/mr_D/mr.nii.gz",
    "Dataset101_OpenKBP/imagesTr",
    "Dataset101_OpenKBP/imagesUnlabelled",
    "Dataset104_Hippocampus/imagesTr",
)
A_FEW = 4  # of a data set's scans, which are all alike


@pytest.mark.parametrize("place", SCANS)
def test_real_scans_keep_their_shape_and_affine(model: Path, tmp_path: Path, real_data: Path, place: str) -> None:
    if not (real_data / place).exists():
        pytest.skip(f"there is no {place}")
    export, report = find_cases([real_data / place]), Reporter(quiet=True)
    assert export
    for case in export[:A_FEW]:
        scan, output = case.channels[0], tmp_path / f"{case.name}.nii.gz"
        run(config(model, scan, output, spacing=(12.0, 12.0, 12.0)), report)
        given, made = read_volume(case.channels), read_label_map(output, allow_empty=True)
        assert made.shape == given.shape
        np.testing.assert_allclose(made.affine, given.affine, atol=1e-3)
    codes = {warning["code"] for warning in report.warnings}
    assert ({"gantry_tilt", "uneven_slices"} <= codes) == (place == "robustness/dicom_gantry_tilt")


def stored_otherwise(volume: Volume, turn: tuple[int, int, int]) -> Volume:
    """Axes permuted and the first flipped, the affine with them: the same voxels at the same places in the patient."""
    array = np.ascontiguousarray(volume.array.transpose(0, *[axis + 1 for axis in turn])[:, ::-1])
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for stored, axis in enumerate(turn):
        matrix[axis, stored] = 1
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    flip[0, 3] = array.shape[1] - 1
    return Volume(array, Geometry(array.shape[1:], volume.affine @ matrix @ flip))


def assert_same_in_space(predictor: Predictor, volume: Volume, turn: tuple[int, int, int]) -> None:
    straight = predictor.segment(volume).labels
    back = predictor.segment(stored_otherwise(volume, turn)).labels[::-1].transpose(np.argsort(turn))
    for value in (3, 9):
        first, second = straight == value, back == value
        assert first.any()
        assert 2 * int((first & second).sum()) >= 0.99 * (int(first.sum()) + int(second.sum()))


TURNS = [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)]


@pytest.mark.parametrize("turn", TURNS)
def test_how_a_scan_is_stored_does_not_matter(model: Path, turn: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).normal(40, 60, (1, 30, 26, 22)).astype(np.float32)
    noise = Volume(array, Geometry((30, 26, 22), np.diag([3.0, 4.0, 5.0, 1.0])))
    assert_same_in_space(Predictor.load(model, device=torch.device("cpu")), noise, turn)


@pytest.fixture(scope="module")
def taught(model: Path, real_data: Path) -> tuple[Predictor, Volume]:
    """A real scan, and a network that learned in seconds to tell its soft tissue (3) from what is brighter (9)."""
    volume = read_volume(real_data / "abdomen/ct_abdomen_A/ct.nii.gz")
    predictor = Predictor.load(model, device=torch.device("cpu"), exact=True)
    predictor.plan = PreprocessingPlan((9.0, 9.0, 9.0), predictor.plan.normalization)
    array = predictor.preprocess(volume).array
    scan, truth = torch.from_numpy(array), torch.from_numpy(np.digitize(array[0], [0.3, 0.65]))
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(predictor.network.parameters(), 2e-3)
    for _ in range(60):
        crops = [tuple(slice(i, i + 16) for i in rng.integers(0, np.array(truth.shape) - 15)) for _ in range(4)]
        logits = predictor.network(torch.stack([scan[(slice(None), *crop)] for crop in crops]))
        loss = torch.nn.functional.cross_entropy(logits, torch.stack([truth[crop] for crop in crops]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = predictor.infer(predictor.preprocess(volume)).labels
    assert (found == np.array([0, 3, 9])[truth]).mean() > 0.8  # it has learned
    return predictor, volume


@pytest.mark.parametrize("turn", TURNS)
def test_how_a_real_scan_is_stored_does_not_matter(
    taught: tuple[Predictor, Volume], turn: tuple[int, int, int]
) -> None:
    assert_same_in_space(*taught, turn)


def test_scans_are_mirrored_only_where_the_model_has_learned_from_such(model: Path, tmp_path: Path) -> None:
    description = read_description(model)
    names = [{"value": 3, "name": "left kidney"}, {"value": 9, "name": "right kidney"}]
    kinds = {  # of model: (description, is it mirrored?)
        "untold": (description, True),
        "untold sides": (replace(description, labels=names), False),
        "swapped": (replace(description, training={"mirroring": {"allowed": True, "swaps": [[3, 9]]}}), True),
        "refused": (replace(description, training={"mirroring": {"allowed": False, "swaps": []}}), False),
        "wrong": (replace(description, training={"mirroring": {"allowed": True, "swaps": [[3, 77]]}}), False),
    }
    scan = write_scan(tmp_path / "scan.nii.gz")
    run(config(model, scan, tmp_path / "plain.nii.gz"), Reporter(quiet=True))
    plain = read_label_map(tmp_path / "plain.nii.gz", allow_empty=True).array
    for name, (told, expected) in kinds.items():
        write_model(tmp_path / name, told, read_weights(model, description))
        report = Reporter(quiet=True)
        run(config(tmp_path / name, scan, tmp_path / f"{name}.nii.gz", mirror=True), report)
        assert ("mirror_confuses_sides" in {warning["code"] for warning in report.warnings}) != expected, name
        found = read_label_map(tmp_path / f"{name}.nii.gz", allow_empty=True).array
        assert np.array_equal(found, plain) != expected, name


# -- how far to trust --------------------------------------------------------------------------------------------


def test_a_report_tells_how_far_to_trust(model: Path, tmp_path: Path) -> None:
    affine = np.diag([1.0, 4.0, 4.0, 1.0])
    array = np.random.default_rng(0).normal(40, 60, (80, 20, 50)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "long.nii.gz")
    report = Reporter(quiet=True)
    run(config(model, tmp_path / "long.nii.gz", tmp_path / "out", smallest=1.0, fill_holes=True), report)
    record = json.loads((tmp_path / "out" / "long.json").read_text(encoding="utf-8"))
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


def test_a_missing_orientation_is_told(model: Path, tmp_path: Path) -> None:
    image = nib.load(write_scan(tmp_path / "scan.nii.gz"))
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "lost.nii.gz")
    report = Reporter(quiet=True)
    run(config(model, tmp_path / "lost.nii.gz", tmp_path / "out"), report)
    record = json.loads((tmp_path / "out" / "lost.json").read_text(encoding="utf-8"))
    assert "orientation_missing" in [warning["code"] for warning in record["warnings"]]
    assert "orientation_missing" in [warning["code"] for warning in report.warnings]


def test_scans_like_those_it_learned_from_are_not_doubted() -> None:
    taught = [
        {"spacing_mm": [1, 1, 5], "extent_mm": [300, 200, 250], "intensities": [[0.0, 0.5, 0.7]]},
        {"spacing_mm": [0.7, 0.7, 1], "extent_mm": [350, 250, 300], "intensities": [[0.0, 0.4, 0.7]]},
    ]
    alike = {"spacing_mm": [0.8, 0.8, 4], "extent_mm": [320, 240, 400], "intensities": [[0.0, 0.6, 0.8]]}
    assert compare_with_training_data(alike, taught) == []
    assert compare_with_training_data(alike, []) == []
    assert [
        note["code"] for note in compare_with_training_data({**alike, "intensities": [[0.0, 0.0, 0.9]]}, taught)
    ] == ["intensities_unlike"]
    assert [note["code"] for note in compare_with_training_data({**alike, "spacing_mm": [0.8, 0.8, 12]}, taught)] == [
        "spacing_unlike"
    ]


def test_facts_are_in_the_patients_axes() -> None:
    affine = np.array([[0, 0, -3.0, 0], [2.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])  # stored A, I, L
    array = np.linspace(0, 1, 20 * 30 * 40, dtype=np.float32).reshape(1, 20, 30, 40)
    facts = scan_fingerprint(Geometry((10, 20, 30), affine), array, (1.5, 1.5, 2.0))
    assert facts["spacing_mm"] == [3.0, 2.0, 1.0]
    assert facts["extent_mm"] == [30.0, 45.0, 80.0]
    np.testing.assert_allclose(facts["intensities"], [[0.05, 0.5, 0.95]], atol=1e-3)
    json.dumps(facts)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
def test_slices_to_review_are_counted_as_stored(flipped: bool, uneven: bool) -> None:
    """A structure whose border is doubtful at one height of the patient; the stack stored up or down, even or not."""
    labels, doubt = np.zeros((20, 20, 40), np.uint8), np.zeros((20, 20, 40), np.float16)
    labels[5:15, 5:15, 5:35] = 1
    doubt[:, :, 30] = 1.0  # 60 mm above the grid's origin
    doubt[10, 10, 12] = 1.0  # inside, at no border: not a reason to look
    step = -5.0 if flipped else 5.0
    affine = np.diag([2.0, 2.0, step, 1.0])
    affine[2, 3] = 75.0 if flipped else 0.0
    origins = None
    if uneven:
        heights = np.array([*range(0, 45, 5), *range(45, 80, 3)][:16], float)
        origins = np.stack([np.zeros(16), np.zeros(16), heights[::-1] if flipped else heights], axis=1)
    native = Geometry((20, 20, 16), affine, origins)
    found = slices_to_review(labels, doubt, NetworkGrid(np.diag([2.0, 2.0, 2.0, 1.0]), native))
    assert len(found) == 1
    z = affine[2, 3] + step * found[0] if origins is None else origins[found[0], 2]
    assert abs(z - 60.0) <= 2.5


def test_no_structure_no_slice() -> None:
    empty = np.zeros((8, 8, 8), np.uint8)
    grid = NetworkGrid(np.eye(4), Geometry((8, 8, 8), np.eye(4)))
    assert slices_to_review(empty, empty.astype(np.float16), grid) == []


def test_the_error_of_a_single_scan_is_its_own(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.nii.gz").write_text("no scan")
    with pytest.raises(HiEndMAEError) as caught:
        run(config(model, tmp_path / "text.nii.gz", tmp_path / "out.nii.gz"))
    assert caught.value.code == "not_a_volume"

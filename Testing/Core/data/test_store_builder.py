"""Scans are preprocessed into a store once, without label maps, duplicates and excluded scans."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from stores import SHAPE, names, prepared, reasons, scan_of, write

from HiEndMAECore.data import crop_store, store_builder
from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.errors import Cancelled, InputError
from HiEndMAECore.io.atomic import PARTIAL_SUFFIX
from HiEndMAECore.prepare import PrepareConfig
from HiEndMAECore.prepare import run as run_prepare
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import BYTES_PER_VOXEL_READING

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    scan = np.random.default_rng(3).uniform(0.25, 1.0, (2, *SHAPE)).astype(np.float32)  # no voxel is as dark as padding
    entry = write_scan(tmp_path / "store", "scan", scan)
    write_manifest(tmp_path / "store", {"scans": [entry], "channels": 2, "preparation": {}})
    return CropStore.open(tmp_path / "store")


@pytest.mark.parametrize("absolute", [False, True])
def test_build_deletes_nothing_outside_of_the_store(tmp_path: Path, absolute: bool) -> None:
    write(tmp_path / "data" / "one.nrrd", scan_of(1))
    manifest = prepared(tmp_path / "store", tmp_path / "data")
    (tmp_path / "notes.txt").write_text("of somebody else")
    away = {"name": "x", "file": str(tmp_path / "notes") if absolute else "../notes", "format": "txt", "content": "c"}
    manifest["scans"].append({**manifest["scans"][0], **away})
    manifest["held_out_contents"] = {"y": "c"}  # entries of these contents are dropped with their files
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json.*'x'") as caught:
        prepared(tmp_path / "store", tmp_path / "data")
    assert caught.value.code == "store_damaged"
    assert (tmp_path / "notes.txt").read_text() == "of somebody else"


def test_mixed_formats_are_stored_and_label_maps_skipped(tmp_path: Path) -> None:
    data, labels = tmp_path / "data", (scan_of(1) > -500).astype(np.uint8)
    write(data / "Dataset001_A/imagesTr/one_0000.nii.gz", scan_of(1))
    write(data / "Dataset001_A/labelsTr/one.nii.gz", labels)
    write(data / "Task02_B/imagesTr/two.nii.gz", scan_of(2))
    write(data / "Task02_B/labelsTr/two.nii.gz", labels)
    write(data / "Task02_B/imagesTs/test.nii.gz", scan_of(3))
    write(data / "loose/three.nrrd", scan_of(4))
    write(data / "loose/four.mha", scan_of(5))
    write(data / "loose/segmentation.nii.gz", labels)
    write(data / "loose/drawn.seg.nrrd", labels)
    write(data / "loose/mri.nii.gz", 3 * (scan_of(7) + 1020))
    (data / "loose/broken.nii.gz").write_bytes(b"no scan at all")
    rng = np.random.default_rng(6)
    slices = np.array([[0.0, 0.0, 4.0 * index] for index in range(10)])

    def pixels(lps: np.ndarray) -> np.ndarray:
        return np.where(lps[..., 0] < 40, -1000, rng.normal(40, 20, lps.shape[:-1]))

    write_series(data / "loose/series", slices, spacing=(4, 4), value=pixels)
    manifest = prepared(tmp_path / "store", data)
    assert names(manifest) == ["four", "one", "series", "three", "two"]
    assert reasons(manifest) == {
        "broken": "not_a_volume",
        "drawn": "not_a_scan",
        "mri": "not_hounsfield",
        "segmentation": "not_a_scan",
    }
    assert "mri" in names(prepared(tmp_path / "store_mri", data / "loose", modality="mri"))
    assert manifest["held_out"] == 1  # what lies in imagesTs
    again = prepared(tmp_path / "store2", data / "Task02_B/imagesTs")
    assert names(again) == ["test"]  # unless it was asked for


def test_duplicates_are_detected_by_their_voxels(tmp_path: Path) -> None:
    write(tmp_path / "in/b.nii.gz", scan_of(1))
    write(tmp_path / "in/c.mha", scan_of(1), flipped=True)
    write(tmp_path / "in/a.nii", scan_of(1).astype(np.float32), spacing=3.9)
    write(tmp_path / "in/d.nii.gz", scan_of(1) + (np.arange(22) == 7).astype(np.int16))  # one slice is another
    for workers in (0, 2):
        store = tmp_path / f"store{workers}"
        manifest = prepared(store, tmp_path / "in", workers=workers)
        assert names(manifest) == ["a", "d"]
        assert reasons(manifest) == {"b": "duplicate", "c": "duplicate"}
        assert sorted(file.name for file in store.glob("*.b2nd")) == ["a.b2nd", "d.b2nd"]
    assert names(prepared(store, tmp_path / "in")) == ["a", "d"]


def test_scan_of_a_taken_name_is_skipped(tmp_path: Path) -> None:
    write(tmp_path / "one/ct.nii.gz", scan_of(1))
    write(tmp_path / "two/ct.nii.gz", scan_of(2))
    prepared(tmp_path / "store", tmp_path / "one")
    manifest = prepared(tmp_path / "store", tmp_path / "two")
    assert reasons(manifest) == {"ct": "name_taken"}
    assert [scan["source"] for scan in manifest["scans"]] == ["one/ct.nii.gz"]


def test_scan_larger_than_memory_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in/large.nii.gz", scan_of(1))
    write(tmp_path / "in/small.nii.gz", scan_of(2)[:12, :12, :12])
    monkeypatch.setattr(store_builder, "free_memory", lambda device: BYTES_PER_VOXEL_READING * 5000)
    manifest = prepared(tmp_path / "store", tmp_path / "in")
    assert (names(manifest), reasons(manifest)) == (["small"], {"large": "too_large"})


class Impatient(Reporter):
    """Cancels as soon as the first scan is done."""

    def progress(self, stage: str, step: int, total: int, **values: object) -> None:
        if step == 1:
            assert multiprocessing.active_children()
            self.cancel()
        super().progress(stage, step, total, **values)


def test_cancelled_build_keeps_stored_scans_and_ends_workers(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / f"in/{index}.nii.gz", scan_of(index))
    config = PrepareConfig(input=(tmp_path / "in",), output=tmp_path / "store", workers=2)
    with pytest.raises(Cancelled):
        run_prepare(config, Impatient(quiet=True))
    assert not multiprocessing.active_children()
    assert len(crop_store.read_manifest(tmp_path / "store")["scans"]) == 1
    run_prepare(config)
    assert len(CropStore.open(tmp_path / "store")) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_build_continues_with_what_is_missing(tmp_path: Path) -> None:
    for index in range(12):
        write(tmp_path / f"in/{index:02}.nii.gz", scan_of(index, (90, 90, 60)), spacing=3.0)
    # A spacing so fine that a scan takes far longer than a look at the manifest, which is written after each.
    store, options = tmp_path / "store", ["--workers", "2", "--spacing", "1", "1", "1"]
    asked = ["--input", str(tmp_path / "in"), "--output", str(store), *options]
    code = "import sys; from HiEndMAECore.data import store_writer; store_writer._SAVE_SECONDS = 0.0\n"
    code += "from HiEndMAECore.prepare import main"
    line = [sys.executable, "-c", f"{code}\nif __name__ == '__main__': sys.exit(main(sys.argv[1:]))", *asked]
    running = subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(crop_store.read_manifest(store).get("scans", [])) < 3 and time.monotonic() < until:
        assert running.poll() is None
        time.sleep(0.05)
    running.kill()
    running.wait()
    kept = {scan["name"]: (store / f"{scan['file']}.b2nd").stat() for scan in crop_store.read_manifest(store)["scans"]}
    assert 3 <= len(kept) < 12
    (store / f".half{PARTIAL_SUFFIX}").write_bytes(b"half")  # as a kill within a write leaves it
    subprocess.run(line, cwd=REPOSITORY, stderr=subprocess.DEVNULL, check=True)
    manifest = crop_store.read_manifest(store)
    assert len(manifest["scans"]) == 12
    for name, before in kept.items():
        assert (store / f"{name}.b2nd").stat().st_mtime_ns == before.st_mtime_ns  # not prepared again
    opened = CropStore.open(store)
    assert all(opened.crop(index, start=(0, 0, 0), size=opened.shape(index)).any() for index in range(12))
    assert {file.name for file in store.iterdir() if file.name.startswith(".")} == set()

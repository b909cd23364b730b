"""The store of prepared scans and what fills it: crops come back as they went in; copies, labels and test scans stay out."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import write_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from HiEndMAECore.data import crop_store
from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import PARTIAL, delete_scan_files, write_manifest, write_scan
from HiEndMAECore.errors import Cancelled, InputError, MissingDependencyError
from HiEndMAECore.inference import memory_plan
from HiEndMAECore.prepare import PrepareConfig
from HiEndMAECore.prepare import run as run_prepare
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.memory import BYTES_PER_VOXEL_READING
from HiEndMAECore.runtime.worker_pool import run_jobs

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = (9, 14, 11)


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    scan = np.random.default_rng(3).uniform(0.25, 1.0, (2, *SHAPE)).astype(np.float32)  # no voxel is as dark as padding
    entry = write_scan(tmp_path / "store", "scan", scan)
    write_manifest(tmp_path / "store", {"scans": [entry], "channels": 2, "preparation": {}})
    return CropStore.open(tmp_path / "store")


corner = st.tuples(*[st.integers(-16, 18)] * 3)
extent = st.tuples(*[st.integers(1, 20)] * 3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=corner, size=extent)
def test_what_is_inside_is_scan_and_the_rest_is_padding(
    store: CropStore, start: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    crop = store.crop(0, start=start, size=size)
    assert crop.shape == (2, *size)
    told = np.zeros(size, bool)
    told[tuple(slice(*pair) for pair in store.inside(0, start=start, size=size))] = True
    np.testing.assert_array_equal(crop[0] > 0, told)
    np.testing.assert_array_equal(crop[1] > 0, told)


# -- prepare -----------------------------------------------------------------------------------------------------


def scan_of(seed: int, shape: tuple[int, int, int] = (30, 26, 22)) -> np.ndarray:
    """A noisy body in air, whole HU."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = x**2 + y**2 < 0.6 + 0.1 * np.sin(seed + 5 * z)
    return np.where(body, 40 + 60 * np.sin(seed + 4 * x), -1000).astype(np.int16) + rng.integers(
        -20, 20, shape, np.int16
    )


def write(path: Path, array: np.ndarray, *, flipped: bool = False, spacing: float = 4.0) -> Path:
    """As any format; `flipped`: stored along the other direction of the first axis, the same patient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([spacing] * 3 + [1.0])
    if flipped:
        array, affine[0, 0], affine[0, 3] = array[::-1], -spacing, spacing * (len(array) - 1)
    if path.name.endswith((".nii.gz", ".nii")):
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    lps = np.diag([-1, -1, 1, 1]) @ affine
    image = sitk.GetImageFromArray(array.T.copy())
    image.SetSpacing([spacing] * 3)
    image.SetDirection((lps[:3, :3] / spacing).ravel())
    image.SetOrigin(lps[:3, 3])
    sitk.WriteImage(image, str(path), True)
    return path


def prepared(output: Path, *inputs: Path, **options: object) -> dict:
    config = PrepareConfig(input=inputs, output=output, spacing=(5.0, 5.0, 5.0), **{"workers": 0, **options})  # type: ignore[arg-type]
    run_prepare(config)
    return crop_store.read_manifest(output)


def names(manifest: dict) -> list[str]:
    return [scan["name"] for scan in manifest["scans"]]


def reasons(manifest: dict) -> dict[str, str]:
    return {row["name"]: row["code"] for row in manifest["left_out"]}


def test_voxels_survive_the_store(store: CropStore) -> None:
    scan = np.random.default_rng(3).uniform(0.25, 1.0, (2, *SHAPE)).astype(np.float32)
    assert np.abs(store.crop(0, start=(0, 0, 0), size=SHAPE) - scan).max() < 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(
        store.crop(0, start=(2, 3, 4), size=(4, 4, 4)),
        store.crop(0, start=(0, 0, 0), size=SHAPE)[:, 2:6, 3:7, 4:8],
    )


def test_a_store_without_blosc2_holds_the_same_voxels(
    store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "blosc2", None)  # what an import finds where the package is missing
        with pytest.raises(MissingDependencyError, match="blosc2"):
            store.crop(0, start=(0, 0, 0), size=SHAPE)
        scan = np.random.default_rng(3).uniform(0.25, 1.0, (2, *SHAPE)).astype(np.float32)
        entry = write_scan(tmp_path / "plain", "scan", scan)
        write_manifest(tmp_path / "plain", {"scans": [entry], "channels": 2, "preparation": {}})
        assert (tmp_path / "plain" / "scan.npy").is_file()
        where: dict = {"start": (-2, 1, 5), "size": (9, 9, 9)}
        plain = CropStore.open(tmp_path / "plain").crop(0, **where)
    np.testing.assert_array_equal(plain, store.crop(0, **where))


def test_a_crop_is_read_without_its_volume(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).uniform(0, 1, (1, 256, 256, 128)).astype(np.float32)
    entry = write_scan(tmp_path, "scan", scan)
    write_manifest(tmp_path, {"scans": [entry], "channels": 1, "preparation": {}})
    code = (
        "import sys; from pathlib import Path; from HiEndMAECore.volumes.crop_store import CropStore\n"
        "store = CropStore.open(Path(sys.argv[1])); store.crop(0, start=(0, 0, 0), size=(1, 1, 1))\n"
        "def read(): return int(open('/proc/self/io').readline().split()[1])\n"
        "before = read(); store.crop(0, start=(70, 70, 70), size=(32, 32, 32)); print(read() - before)"
    )
    if not Path("/proc/self/io").exists():
        pytest.skip("only Linux tells how many bytes a process read")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < entry["bytes"] / 10


def test_a_store_of_another_format_is_refused(store: CropStore) -> None:
    file = store.path / "manifest.json"
    for version, code in ((1, "store_older"), (99, "store_newer")):
        file.write_text(json.dumps({**store.manifest, "format_version": version}))
        with pytest.raises(InputError) as caught:
            CropStore.open(store.path)
        assert caught.value.code == code


def test_a_damaged_scan_is_named(store: CropStore) -> None:
    file = next(store.path.glob("*.b2nd"))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError, match=r"scan\.b2nd"):
        store.crop(0, start=(0, 0, 0), size=SHAPE)


BAD_ENTRIES = [
    {"file": "../notes"}, {"file": "/notes"}, {"file": "sub/notes"}, {"file": "..\\notes"}, {"file": "C:notes"},
    {"file": ".."}, {"file": "."}, {"file": ""}, {"file": None}, {"file": 3}, {"file": "a\0b"}, {"file": "link"},
    {"format": "txt"}, {"format": "../txt"}, {"format": None}, {"format": ["npy"]},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD_ENTRIES)
def test_an_entry_that_leads_out_of_the_store_is_refused(
    store: CropStore, tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / "notes.b2nd").write_text("of somebody else")
    for suffix in ("b2nd", "tissue.npy"):
        (store.path / f"link.{suffix}").symlink_to(tmp_path / "notes.b2nd")
    entry = {**store.manifest["scans"][0], "name": "odd one", "content": "c", **change}
    before = sorted(path.name for path in (*tmp_path.iterdir(), *store.path.iterdir()))

    def refused(call: Callable[[], object]) -> None:
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.code == "store_damaged"
        assert "manifest.json" in caught.value.message
        assert "odd one" in caught.value.message
        assert caught.value.advice

    opened = CropStore(store.path, {**store.manifest, "scans": [entry]})
    refused(lambda: opened.crop(0, start=(0, 0, 0), size=(2, 2, 2)))
    refused(lambda: opened.tissue(0))
    refused(lambda: delete_scan_files(store.path, entry))
    write_manifest(store.path, {**store.manifest, "scans": [*store.manifest["scans"], entry]})
    refused(lambda: CropStore.open(store.path))
    assert sorted(path.name for path in (*tmp_path.iterdir(), *store.path.iterdir())) == before


@pytest.mark.parametrize("scans", [3, "text", {"a": 1}, [None], ["a"]])
def test_a_list_of_scans_that_is_none_is_refused(store: CropStore, scans: object) -> None:
    write_manifest(store.path, {**store.manifest, "scans": scans})
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        CropStore.open(store.path)
    assert caught.value.code == "store_damaged"


@pytest.mark.parametrize("absolute", [False, True])
def test_preparing_deletes_nothing_outside_of_the_store(tmp_path: Path, absolute: bool) -> None:
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


def test_a_store_in_a_linked_folder_is_read_and_filled(store: CropStore, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(store.path, target_is_directory=True)
    opened = CropStore.open(tmp_path / "linked")
    np.testing.assert_array_equal(
        opened.crop(0, start=(0, 0, 0), size=SHAPE), store.crop(0, start=(0, 0, 0), size=SHAPE)
    )
    delete_scan_files(opened.path, opened.manifest["scans"][0])
    assert [path.name for path in store.path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("name", ["a\\b", "C:a", "..", "a/b"])
def test_a_scan_whose_name_is_no_file_name_is_left_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        write_scan(tmp_path / "store", name, np.zeros((1, 4, 4, 4), np.float32))
    assert caught.value.code == "name_unusable"
    assert caught.value.advice


def test_any_mixture_is_prepared_and_labels_are_not_scans(tmp_path: Path) -> None:
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


def test_copies_are_known_by_their_voxels(tmp_path: Path) -> None:
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


def test_a_test_scan_never_gets_in(tmp_path: Path) -> None:
    write(tmp_path / "in/one/ct.nii.gz", scan_of(1))
    write(tmp_path / "in/two/ct.nii.gz", scan_of(2))
    write(tmp_path / "in/three/renamed.mha", scan_of(2), flipped=True)
    write(tmp_path / "in/four/copy.nii.gz", scan_of(3))
    write(tmp_path / "elsewhere/secret_0000.nii.gz", scan_of(3))
    store = tmp_path / "store"
    assert len(names(prepared(store, tmp_path / "in"))) == 3  # nothing held out: only the second copy is left out
    (tmp_path / "list.txt").write_text("two_ct\nelsewhere/secret_0000.nii.gz\nabsent\n")
    manifest = prepared(store, tmp_path / "in", hold_out=tmp_path / "list.txt")
    assert names(manifest) == ["one_ct"]
    assert reasons(manifest) == {"copy": "held_out_copy", "renamed": "held_out_copy"}
    assert [file.name for file in store.glob("*.b2nd")] == ["one_ct.b2nd"]
    assert names(prepared(store, tmp_path / "in")) == ["one_ct"]  # and stays out, without the list as well
    (tmp_path / "list.json").write_text(json.dumps({"test": ["ct"]}))  # the files' own name, before folders tell apart
    assert names(prepared(tmp_path / "other", tmp_path / "in", hold_out=tmp_path / "list.json")) == ["copy"]


def test_a_scan_of_a_taken_name_is_told(tmp_path: Path) -> None:
    write(tmp_path / "one/ct.nii.gz", scan_of(1))
    write(tmp_path / "two/ct.nii.gz", scan_of(2))
    prepared(tmp_path / "store", tmp_path / "one")
    manifest = prepared(tmp_path / "store", tmp_path / "two")
    assert reasons(manifest) == {"ct": "name_taken"}
    assert [scan["source"] for scan in manifest["scans"]] == ["one/ct.nii.gz"]


def test_a_scan_larger_than_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in/large.nii.gz", scan_of(1))
    write(tmp_path / "in/small.nii.gz", scan_of(2)[:12, :12, :12])
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: BYTES_PER_VOXEL_READING * 5000)
    manifest = prepared(tmp_path / "store", tmp_path / "in")
    assert (names(manifest), reasons(manifest)) == (["small"], {"large": "too_large"})


def dies_of(job: int) -> int:
    """Work that the system kills when its job is 2."""
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_worker_that_dies_costs_its_job_alone() -> None:
    done = dict(run_jobs(dies_of, range(6), workers=2, check=lambda: None))
    assert (done.pop(2).code, done) == ("worker_died", {0: 0, 1: 1, 3: 9, 4: 16, 5: 25})


def slow(job: float) -> float:
    time.sleep(0.3)
    return time.monotonic()


def test_jobs_share_the_memory() -> None:
    ended = [end for _, end in run_jobs(slow, [1.0, 1.0, 5.0], workers=3, check=lambda: None, cost=float, budget=2.0)]
    assert ended[2] - max(ended[:2]) > 0.25  # the large one waited until it was alone


class Impatient(Reporter):
    """Cancels as soon as the first scan is done."""

    def progress(self, stage: str, step: int, total: int, **values: object) -> None:
        if step == 1:
            assert multiprocessing.active_children()
            self.cancel()
        super().progress(stage, step, total, **values)


def test_cancelling_keeps_what_is_done_and_ends_the_workers(tmp_path: Path) -> None:
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
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    for index in range(12):
        write(tmp_path / f"in/{index:02}.nii.gz", scan_of(index, (90, 90, 60)), spacing=3.0)
    # A spacing so fine that a scan takes far longer than a look at the manifest, which is written after each.
    store, options = tmp_path / "store", ["--workers", "2", "--spacing", "1", "1", "1"]
    asked = ["--input", str(tmp_path / "in"), "--output", str(store), *options]
    code = "import sys; from HiEndMAECore.volumes import shelf; shelf._SAVE_EVERY = 0.0; from HiEndMAECore.prepare import main"
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
    (store / f".half{PARTIAL}").write_bytes(b"half")  # as a kill within a write leaves it
    subprocess.run(line, cwd=REPOSITORY, stderr=subprocess.DEVNULL, check=True)
    manifest = crop_store.read_manifest(store)
    assert len(manifest["scans"]) == 12
    for name, before in kept.items():
        assert (store / f"{name}.b2nd").stat().st_mtime_ns == before.st_mtime_ns  # not prepared again
    opened = CropStore.open(store)
    assert all(opened.crop(index, start=(0, 0, 0), size=opened.shape(index)).any() for index in range(12))
    assert {file.name for file in store.iterdir() if file.name.startswith(".")} == set()

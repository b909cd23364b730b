"""A store gives the voxels that were put in, and reads nothing outside of its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import SHAPE

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import delete_scan_files, write_manifest, write_scan
from HiEndMAECore.errors import InputError, MissingDependencyError


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
def test_valid_box_separates_scan_and_padding(
    store: CropStore, start: tuple[int, int, int], size: tuple[int, int, int]
) -> None:
    crop = store.crop(0, start=start, size=size)
    assert crop.shape == (2, *size)
    valid = np.zeros(size, bool)
    valid[tuple(slice(*pair) for pair in store.valid_box(0, start=start, size=size))] = True
    np.testing.assert_array_equal(crop[0] > 0, valid)
    np.testing.assert_array_equal(crop[1] > 0, valid)


def test_crop_has_the_voxels_that_were_stored(store: CropStore) -> None:
    scan = np.random.default_rng(3).uniform(0.25, 1.0, (2, *SHAPE)).astype(np.float32)
    assert np.abs(store.crop(0, start=(0, 0, 0), size=SHAPE) - scan).max() < 0.5 / 255 + 1e-6
    np.testing.assert_array_equal(
        store.crop(0, start=(2, 3, 4), size=(4, 4, 4)),
        store.crop(0, start=(0, 0, 0), size=SHAPE)[:, 2:6, 3:7, 4:8],
    )


def test_store_without_blosc2_has_the_same_voxels(
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


def test_crop_is_read_without_its_volume(tmp_path: Path) -> None:
    scan = np.random.default_rng(0).uniform(0, 1, (1, 256, 256, 128)).astype(np.float32)
    entry = write_scan(tmp_path, "scan", scan)
    write_manifest(tmp_path, {"scans": [entry], "channels": 1, "preparation": {}})
    code = (
        "import sys; from pathlib import Path; from HiEndMAECore.data.crop_store import CropStore\n"
        "store = CropStore.open(Path(sys.argv[1])); store.crop(0, start=(0, 0, 0), size=(1, 1, 1))\n"
        "def read(): return int(open('/proc/self/io').readline().split()[1])\n"
        "before = read(); store.crop(0, start=(70, 70, 70), size=(32, 32, 32)); print(read() - before)"
    )
    if not Path("/proc/self/io").exists():
        pytest.skip("only Linux counts the bytes that a process reads")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < entry["bytes"] / 10


def test_store_of_another_format_is_refused(store: CropStore) -> None:
    file = store.path / "manifest.json"
    for version, code in ((1, "store_older"), (99, "store_newer")):
        file.write_text(json.dumps({**store.manifest, "format_version": version}))
        with pytest.raises(InputError) as caught:
            CropStore.open(store.path)
        assert caught.value.code == code


def test_damaged_scan_is_named(store: CropStore) -> None:
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
def test_entry_outside_of_the_store_is_refused(store: CropStore, tmp_path: Path, change: dict[str, object]) -> None:
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
def test_manifest_without_a_list_of_scans_is_refused(store: CropStore, scans: object) -> None:
    write_manifest(store.path, {**store.manifest, "scans": scans})
    with pytest.raises(InputError, match=r"manifest\.json") as caught:
        CropStore.open(store.path)
    assert caught.value.code == "store_damaged"


def test_store_in_a_linked_folder_is_read_and_filled(store: CropStore, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(store.path, target_is_directory=True)
    opened = CropStore.open(tmp_path / "linked")
    np.testing.assert_array_equal(
        opened.crop(0, start=(0, 0, 0), size=SHAPE), store.crop(0, start=(0, 0, 0), size=SHAPE)
    )
    delete_scan_files(opened.path, opened.manifest["scans"][0])
    assert [path.name for path in store.path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("name", ["a\\b", "C:a", "..", "a/b"])
def test_scan_without_a_plain_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as caught:
        write_scan(tmp_path / "store", name, np.zeros((1, 4, 4, 4), np.float32))
    assert caught.value.code == "name_unusable"
    assert caught.value.advice

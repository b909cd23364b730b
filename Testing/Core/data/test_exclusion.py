"""Scans on the exclusion list and test scans never get into a store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stores import SHAPE, names, prepared, reasons, scan_of, write

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.prepare import PrepareConfig
from HiEndMAECore.prepare import run as run_prepare
from HiEndMAECore.reporting.reporter import Reporter


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    scan = np.random.default_rng(3).uniform(0.25, 1.0, (2, *SHAPE)).astype(np.float32)  # no voxel is as dark as padding
    entry = write_scan(tmp_path / "store", "scan", scan)
    write_manifest(tmp_path / "store", {"scans": [entry], "channels": 2, "preparation": {}})
    return CropStore.open(tmp_path / "store")


def test_excluded_scan_and_its_copies_never_get_in(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("order", [("data", "data/imagesTs"), ("data/imagesTs", "data")])
def test_test_folder_that_is_an_input_is_taken_in_any_order(tmp_path: Path, order: tuple[str, str]) -> None:
    """Only the first input that contained a scan was asked, so the order of inputs decided."""
    write(tmp_path / "data/train.nii.gz", scan_of(1))
    write(tmp_path / "data/imagesTs/test.nii.gz", scan_of(2))
    assert names(prepared(tmp_path / "store", tmp_path / "data")) == ["train"]
    manifest = prepared(tmp_path / "both", *(tmp_path / folder for folder in order))
    assert sorted(names(manifest)) == ["test", "train"]


def test_exclusion_list_with_a_byte_order_mark_excludes_its_first_name(tmp_path: Path) -> None:
    write(tmp_path / "in/a.nii.gz", scan_of(1))
    write(tmp_path / "in/b.nii.gz", scan_of(2))
    (tmp_path / "list.txt").write_bytes("b\n".encode("utf-8-sig"))
    assert names(prepared(tmp_path / "store", tmp_path / "in", hold_out=tmp_path / "list.txt")) == ["a"]
    (tmp_path / "nested.json").write_text('{"folds": [{"val": ["b"]}, {"val": []}]}')
    assert names(prepared(tmp_path / "other", tmp_path / "in", hold_out=tmp_path / "nested.json")) == ["a"]


def test_name_on_the_exclusion_list_without_a_scan_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "in/a.nii.gz", scan_of(1))
    (tmp_path / "list.txt").write_text("misspelt\n")
    report = Reporter(quiet=True)
    config = PrepareConfig(
        input=(tmp_path / "in",), output=tmp_path / "store", hold_out=tmp_path / "list.txt", workers=0
    )
    run_prepare(config, report)
    (warning,) = [warning for warning in report.warnings if warning["code"] == "held_out_unmatched"]
    assert "misspelt" in warning["message"]

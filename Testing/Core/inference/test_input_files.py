"""Identity of a scan's files: every file that holds voxels counts, and so does every byte."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from inference_helpers import write_dicom_scan, write_scan

from HiEndMAECore.inference.input_files import are_same_inputs, describe_inputs, scan_files
from HiEndMAECore.io.atomic import sha256_file


def write_pair(folder: Path, suffix: str) -> tuple[Path, Path]:
    """Write a scan of a header and a file of voxels, and return both."""
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    if suffix == ".hdr":
        nib.save(nib.Nifti1Pair(array, np.eye(4)), folder / "scan.hdr")
        return folder / "scan.hdr", folder / "scan.img"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"scan{suffix}"))
    return folder / f"scan{suffix}", next(file for file in folder.glob("scan*") if file.suffix != suffix)


def change_a_byte(path: Path) -> None:
    """Change the last byte of a file and keep its size and its time of change."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_input_with_a_changed_byte_of_the_same_size_and_time_differs(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii")
    described = describe_inputs([scan])
    assert described[0]["sha256"] == sha256_file(scan)
    assert are_same_inputs([scan], described)
    change_a_byte(scan)
    assert {**describe_inputs([scan])[0], "sha256": ""} == {**described[0], "sha256": ""}
    assert not are_same_inputs([scan], described)


def test_input_with_voxels_beside_its_header_includes_them(tmp_path: Path) -> None:
    for suffix in (".hdr", ".mhd", ".nhdr"):
        folder = tmp_path / suffix
        folder.mkdir()
        header, voxels = write_pair(folder, suffix)
        assert scan_files(header) == sorted([header, voxels])
        described = describe_inputs([header])
        assert described[0]["files"] == 2
        assert are_same_inputs([header], described)
        change_a_byte(voxels)
        assert not are_same_inputs([header], described)


def test_input_with_detached_data_in_a_missing_file_or_another_folder_ignores_it(tmp_path: Path) -> None:
    (tmp_path / "other.raw").write_bytes(b"12")
    (tmp_path / "in").mkdir()
    header = tmp_path / "in" / "scan.nhdr"
    for name in ("absent.raw", "../other.raw", "/etc/hostname"):
        header.write_text(f"NRRD0004\ndata file: {name}\n\n")
        assert scan_files(header) == [header]


def test_input_of_a_dicom_series_includes_every_slice(tmp_path: Path) -> None:
    scan = write_dicom_scan(tmp_path / "scan")
    (scan / "notes.txt").write_text("not a slice")
    described = describe_inputs([scan])
    assert described[0]["files"] == 13
    assert are_same_inputs([scan], described)
    assert scan_files(sorted(scan.glob("*.dcm"))[0]) == scan_files(scan)  # a slice stands for its series
    change_a_byte(sorted(scan.glob("*.dcm"))[4])
    assert not are_same_inputs([scan], described)


def test_input_that_cannot_be_read_matches_nothing(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz")
    assert describe_inputs([scan, tmp_path / "absent.nii.gz"]) == []
    assert not are_same_inputs([scan], [])

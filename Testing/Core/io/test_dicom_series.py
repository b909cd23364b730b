"""DICOM series are found, sorted and placed in the patient by the tags of their slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from volume_files import refusal, stack

from HiEndMAECore.io.dicom_series import find_series
from HiEndMAECore.io.readers import read_volume


def height(lps: np.ndarray) -> np.ndarray:
    return np.rint(lps[..., 2] * 10)


def test_regular_series_has_an_affine(tmp_path: Path) -> None:
    files_ = write_series(tmp_path / "ct", stack(6)[::-1], value=height, spacing=(0.5, 0.8))
    volume = read_volume(tmp_path / "ct")
    assert volume.name == "ct"
    assert volume.array.shape == (1, 40, 32, 6)
    assert volume.geometry.slice_origins is None
    assert volume.notes == ()
    np.testing.assert_allclose(volume.spacing, (0.5, 0.8, 2.5))
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], [20, 10, 30, 1])
    np.testing.assert_array_equal(volume.array[0, 0, 0], [300, 325, 350, 375, 400, 425])  # rescaled, sorted
    np.testing.assert_array_equal(read_volume(files_[2]).array, volume.array)


def test_single_slice_has_its_thickness(tmp_path: Path) -> None:
    write_series(tmp_path / "one", stack(1))
    volume = read_volume(tmp_path / "one")
    assert volume.shape == (40, 32, 1)
    np.testing.assert_allclose(volume.spacing, (1, 1, 5))  # the slice thickness


def test_folder_of_several_series_lists_them(tmp_path: Path) -> None:
    write_series(tmp_path, stack(6), uid="1.2.3", description="Venous", value=height)
    write_series(tmp_path, stack(4), uid="1.2.4", description="Bone", prefix="other", value=lambda p: height(p) + 1)
    error = refusal("several_series", tmp_path)
    assert all(part in error.advice for part in ("1.2.3", "Venous", "6 slices", "1.2.4", "Bone", "4 slices"))
    assert read_volume(tmp_path, series="1.2.4").array[0, 0, 0, 0] == 301
    assert read_volume(tmp_path / "other_001.dcm").shape[2] == 4
    refusal("series_unknown", tmp_path, series="9.9")
    assert [(one.uid, one.modality, one.shape) for one in find_series(tmp_path)] == [
        ("1.2.3", "CT", (40, 32, 6)),
        ("1.2.4", "CT", (40, 32, 4)),
    ]


def test_localizers_and_duplicates_are_skipped_with_a_note(tmp_path: Path) -> None:
    write_series(tmp_path, stack(6), value=height)
    write_series(tmp_path, stack(1), row=(0, 1, 0), column=(0, 0, -1), prefix="scout", first_number=50)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "slice_002.dcm").read_bytes())
    volume = read_volume(tmp_path)
    assert volume.shape == (40, 32, 6)
    np.testing.assert_array_equal(volume.array[0, 0, 0], [300, 325, 350, 375, 400, 425])
    assert [note["code"] for note in volume.notes] == ["slices_left_out", "slices_left_out"]


def test_series_of_two_times_needs_a_frame(tmp_path: Path) -> None:
    write_series(tmp_path, stack(5), value=height)
    write_series(tmp_path, stack(5), value=lambda p: height(p) + 1, prefix="later", first_number=6)
    assert "2 frames" in refusal("four_dimensional", tmp_path).message
    assert read_volume(tmp_path, frame=1).array[0, 0, 0, 0] == 301
    (tmp_path / "later_003.dcm").unlink()
    refusal("duplicate_slices", tmp_path)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    refusal("no_dicom", tmp_path)


@pytest.mark.parametrize("reverse", [False, True])
def test_tilted_series_keeps_its_slice_origins(tmp_path: Path, reverse: bool) -> None:
    angle = np.radians(15.0)
    column = (0.0, float(np.cos(angle)), float(np.sin(angle)))
    origins = stack(8, (0, 0, 4.0))
    write_series(tmp_path / "t", origins[::-1] if reverse else origins, column=column)
    volume = read_volume(tmp_path / "t")
    assert [note["code"] for note in volume.notes] == ["gantry_tilt"]
    assert "15.0 degrees" in volume.notes[0]["message"]
    np.testing.assert_allclose(volume.geometry.slice_origins, origins * [-1, -1, 1], atol=1e-5)
    np.testing.assert_allclose(volume.spacing[2], 4.0, atol=1e-5)
    np.testing.assert_allclose(volume.affine[:3, 3], origins[0] * [-1, -1, 1], atol=1e-5)


def test_missing_slice_is_noted_as_uneven(tmp_path: Path) -> None:
    write_series(tmp_path / "m", np.delete(stack(9), 4, axis=0))
    volume = read_volume(tmp_path / "m")
    assert [note["code"] for note in volume.notes] == ["uneven_slices"]
    assert "2.5 to 5.0 mm" in volume.notes[0]["message"]
    np.testing.assert_allclose(volume.spacing[2], 20.0 / 7)

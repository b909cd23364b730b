"""Formats of scans and results: the same labels in each, DICOM SEG, and a DICOM folder with several series."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import write_series
from inference_helpers import segment_config, write_dicom_scan, write_scan, write_untrained_model

from HiEndMAECore.errors import InputError, MissingDependencyError
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.writers import write_scalar_map
from HiEndMAECore.segment import FORMATS, run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_untrained_model(tmp_path_factory.mktemp("models") / "model")


def test_input_formats_of_one_scan_give_the_same_labels(model: Path, tmp_path: Path) -> None:
    """One scan as NIfTI, NRRD, MHA and DICOM, in a folder tree and in a list: the same labels in space."""
    scan = write_dicom_scan(tmp_path / "tree" / "deep" / "as dicom")
    volume = read_volume(scan)
    for name in ("a.nii.gz", "b.nii", "c.nrrd", "deep/d.mha"):
        write_scalar_map(tmp_path / "tree" / name, volume.array[0], volume.geometry)
    names = {"a", "b", "c", "d", "as dicom"}
    run(segment_config(model, tmp_path / "tree", tmp_path / "from tree"))
    (tmp_path / "list.txt").write_text("\n".join(str(tmp_path / "tree" / name) for name in ("c.nrrd", "deep/as dicom")))
    run(segment_config(model, tmp_path / "list.txt", tmp_path / "from list"))
    assert {path.name for path in (tmp_path / "from tree").glob("*.nii.gz")} == {f"{name}.nii.gz" for name in names}
    assert {path.name for path in (tmp_path / "from list").glob("*.nii.gz")} == {"c.nii.gz", "as dicom.nii.gz"}
    results = [read_label_map(path) for path in tmp_path.glob("from */*.nii.gz")]
    assert len(results) == 7
    assert {3, 9} & set(np.unique(results[0].array))
    for result in results:
        np.testing.assert_allclose(result.affine, volume.affine, atol=1e-4)
        np.testing.assert_array_equal(result.array, results[0].array)


@pytest.mark.parametrize("file_format", [name for name in FORMATS if name != "dcm"])
def test_output_format_holds_the_same_labels(model: Path, tmp_path: Path, file_format: str) -> None:
    scan = write_scan(tmp_path / "scan.nii.gz", shape=(20, 18, 12))
    run(segment_config(model, scan, tmp_path / "nifti"))
    run(segment_config(model, scan, tmp_path / "out", format=file_format, uncertainty=True))
    expected = read_label_map(tmp_path / "nifti" / "scan.nii.gz")
    result = read_label_map(tmp_path / "out" / f"scan.{file_format}")
    np.testing.assert_array_equal(result.array, expected.array)
    np.testing.assert_allclose(result.affine, expected.affine, atol=1e-5)
    entropy = read_volume(tmp_path / "out" / f"scan_entropy.{file_format.removeprefix('seg.')}")
    assert entropy.shape == expected.shape
    assert 0 <= entropy.array.min() < entropy.array.max() <= 1.0001
    if file_format == "seg.nrrd":
        header = sitk.ReadImage(str(tmp_path / "out" / "scan.seg.nrrd"))
        assert [header.GetMetaData(f"Segment{n}_Name") for n in range(2)] == ["liver", "spleen"]
        assert all(len(header.GetMetaData(f"Segment{n}_Color").split()) == 3 for n in range(2))


def test_dicom_folder_with_several_series_needs_a_series_uid(model: Path, tmp_path: Path) -> None:
    for uid, count in (("1.2.3", 12), ("1.2.4", 9)):
        heights = np.array([[0, 0, 4.0 * z] for z in range(count)])
        write_series(tmp_path / "scan", heights, uid=uid, prefix=uid, description=f"Series of {count}")
    with pytest.raises(InputError) as caught:
        run(segment_config(model, tmp_path / "scan", tmp_path / "out.nii.gz"))
    assert caught.value.code == "several_series"
    assert all(part in caught.value.advice for part in ("1.2.3", "1.2.4", "Series of 9"))
    run(segment_config(model, tmp_path / "scan", tmp_path / "out.nii.gz", series="1.2.4"))
    assert read_label_map(tmp_path / "out.nii.gz", allow_empty=True).shape == (40, 32, 9)


def test_dicom_seg_refers_to_the_slices_of_its_series(model: Path, tmp_path: Path) -> None:
    hd = pytest.importorskip("highdicom", reason="highdicom is an extra")
    import pydicom

    scan = write_dicom_scan(tmp_path / "scan")
    run(segment_config(model, scan, tmp_path / "as_nifti"))
    run(segment_config(model, scan, tmp_path / "as_dicom", format="dcm"))
    labels = read_label_map(tmp_path / "as_nifti" / "scan.nii.gz").array[0]
    assert (labels > 0).any()
    seg = hd.seg.segread(tmp_path / "as_dicom" / "scan.dcm")
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == ["liver", "spleen"]
    files = [pydicom.dcmread(file) for file in sorted(scan.glob("slice_*.dcm"))]
    assert seg.StudyInstanceUID == files[0].StudyInstanceUID
    frames = seg.get_pixels_by_source_instance(
        [file.SOPInstanceUID for file in files], combine_segments=True, ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )  # fmt: skip
    heights = np.argsort([file.ImagePositionPatient[2] for file in files])
    expected = np.select([labels == 3, labels == 9], [1, 2])
    np.testing.assert_array_equal(frames[heights], expected.transpose(2, 1, 0))


def test_dicom_seg_is_refused_as_a_scan_and_as_a_label_map(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="highdicom is an extra")
    scan = write_dicom_scan(tmp_path / "scan")
    run(segment_config(model, scan, tmp_path / "out", format="dcm"))
    for path in (tmp_path / "out" / "scan.dcm", tmp_path / "out"):
        for read in (read_label_map, read_volume):
            with pytest.raises(InputError) as caught:
                read(path)
            assert caught.value.code == "dicom_segmentation"
            assert "scan.dcm" in caught.value.message
            assert caught.value.advice
    before = read_volume(scan)
    shutil.copy(tmp_path / "out" / "scan.dcm", scan / "copy.dcm")  # beside its slices it is not a second series
    np.testing.assert_array_equal(read_volume(scan).array, before.array)
    with pytest.raises(InputError) as caught:
        read_label_map(scan / "copy.dcm")
    assert caught.value.code == "dicom_segmentation"


def test_dicom_seg_without_a_series_or_highdicom_is_refused_before_the_computation(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = segment_config(model, write_scan(tmp_path / "scan.nii.gz"), tmp_path / "out", format="dcm")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingDependencyError, match="highdicom"):
        run(config)
    monkeypatch.setitem(sys.modules, "highdicom", object())
    with pytest.raises(InputError, match="is not a DICOM series"):
        run(config)

"""Label maps and scalar maps are written completely or not at all, with the geometry of their scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from volume_files import OBLIQUE, SHAPE, SHEARED

from HiEndMAECore.errors import UsageError
from HiEndMAECore.io import writers
from HiEndMAECore.io.file_names import WRITTEN_SUFFIXES
from HiEndMAECore.io.readers import read_label_map
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.io.writers import write_label_map


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
def test_label_map_written_and_read_is_unchanged(tmp_path: Path, suffix: str) -> None:
    labels = np.zeros(SHAPE, np.uint16)
    labels[1:3], labels[4, 2:4] = 3, 300
    path = tmp_path / "Ordner mit Ü" / f"case 1{suffix}"
    write_label_map(path, labels, Geometry(SHAPE, OBLIQUE))
    back = read_label_map(path)
    np.testing.assert_array_equal(back.array[0], labels)
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-5)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_nifti_header_has_both_forms(tmp_path: Path, affine: np.ndarray) -> None:
    affine = affine.astype(np.float32).astype(np.float64)  # what a NIfTI file can say
    write_label_map(tmp_path / "l.nii.gz", np.ones(SHAPE, np.uint8), Geometry(SHAPE, affine))
    header = nib.load(tmp_path / "l.nii.gz").header
    np.testing.assert_array_equal(header.get_sform(), affine)
    assert int(header["sform_code"]) == 2
    assert header.get_xyzt_units()[0] == "mm"
    assert int(header["qform_code"]) == (1 if affine is not SHEARED and np.allclose(affine, OBLIQUE) else 0)
    if int(header["qform_code"]):
        np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)


def test_seg_nrrd_has_the_header_of_slicer(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3] = 2
    liver = {
        "category": {"CodingSchemeDesignator": "SCT", "CodeValue": "123037004", "CodeMeaning": "Anatomical Structure"},
        "type": {"CodingSchemeDesignator": "SCT", "CodeValue": "10200004", "CodeMeaning": "Liver"},
    }
    structures = [Structure(2, "Leber / 肝臓", (255, 0, 51), liver), Structure(5, "not there")]
    write_label_map(tmp_path / "s.seg.nrrd", labels, Geometry(SHAPE, OBLIQUE), structures=structures)
    image = sitk.ReadImage(str(tmp_path / "s.seg.nrrd"))
    assert image.GetMetaData("Segment0_Name") == "Leber / 肝臓"
    assert image.GetMetaData("Segment0_LabelValue") == "2"
    assert image.GetMetaData("Segment0_Color") == "1 0 0.2"
    assert image.GetMetaData("Segment0_Extent") == "0 6 0 5 0 4"
    assert image.GetMetaData("Segment0_Tags") == (
        "TerminologyEntry:Segmentation category and type - 3D Slicer General Anatomy list"
        "~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes - DICOM master list~^^~^^|"
    )
    assert image.GetMetaData("Segment1_Name") == "not there"
    assert image.GetMetaData("Segmentation_ContainedRepresentationNames") == "Binary labelmap|"
    write_label_map(tmp_path / "t.seg.nrrd", labels, Geometry(SHAPE, OBLIQUE))
    assert sitk.ReadImage(str(tmp_path / "t.seg.nrrd")).GetMetaData("Segment0_Name") == "Segment_2"


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_failed_write_keeps_the_old_file(tmp_path: Path, suffix: str, monkeypatch) -> None:
    path, geometry = tmp_path / f"l{suffix}", Geometry(SHAPE, OBLIQUE)
    write_label_map(path, np.ones(SHAPE, np.uint8), geometry)
    before = path.read_bytes()

    def full(_: object, target: object, *rest: object) -> None:
        Path(str(target)).write_bytes(b"half")
        raise OSError("no space left on device") if suffix == ".nii.gz" else RuntimeError("no space left on device")

    monkeypatch.setattr(writers.nib, "save", full)
    monkeypatch.setattr(writers.sitk, "WriteImage", full)
    with pytest.raises(OSError, match="no space"):
        write_label_map(path, np.zeros(SHAPE, np.uint8), geometry)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_open_file_can_be_replaced(tmp_path: Path, suffix: str) -> None:
    path, geometry = tmp_path / f"l{suffix}", Geometry(SHAPE, OBLIQUE)
    write_label_map(path, np.ones(SHAPE, np.uint8), geometry)
    before, held = path.read_bytes(), tmp_path / f"held{suffix}"
    held.hardlink_to(path)
    write_label_map(path, np.full(SHAPE, 2, np.uint8), geometry)
    assert held.read_bytes() == before
    assert (read_label_map(path).array == 2).all()


def test_unknown_format_or_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"l\.png"):
        write_label_map(tmp_path / "l.png", np.ones(SHAPE, np.uint8), Geometry(SHAPE, OBLIQUE))
    with pytest.raises(ValueError, match="shape"):
        write_label_map(tmp_path / "l.nii", np.ones((2, 2, 2), np.uint8), Geometry(SHAPE, OBLIQUE))
    with pytest.raises(ValueError, match="whole numbers"):
        write_label_map(tmp_path / "l.nii", np.ones(SHAPE, np.float32), Geometry(SHAPE, OBLIQUE))

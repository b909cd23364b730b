"""Reading and writing: what is accepted as it is, what is noted, what is refused and how."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import write_series

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.io import writers
from HiEndMAECore.io.alignment import align_label_map, check_same_geometry
from HiEndMAECore.io.dicom_series import find_series
from HiEndMAECore.io.file_names import WRITTEN_SUFFIXES, case_name
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.io.writers import write_label_map, write_scalar_map

OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-0.9, 1.1, 2.5]), [12.5, -40.25, 7.0]
)
SHEARED = OBLIQUE @ np.array([[1, 0, 0, 0], [0, 1, 0.4, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
SHAPE = (7, 6, 5)


def scan(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 300, shape).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def refusal(code: str, path: Path, reader=read_volume, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        reader(path, **options)
    assert caught.value.code == code, str(caught.value)
    assert path.name in caught.value.message
    assert caught.value.advice
    return caught.value


# -- what is read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_scalar_round_trip(tmp_path: Path, suffix: str, affine: np.ndarray) -> None:
    path = tmp_path / f"Größe und 名前{suffix}"
    write_scalar_map(path, scan(), Geometry(SHAPE, affine))
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], scan())
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.name == "Größe und 名前"
    assert volume.notes == ()


def test_lps_files_and_nifti_agree_on_where_things_are(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(scan().T)
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    from_nrrd, from_nifti = read_volume(tmp_path / "a.nrrd"), read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(from_nrrd.affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    np.testing.assert_allclose(from_nrrd.affine, from_nifti.affine, atol=1e-5)


def test_slope_and_pairs_and_trailing_ones(tmp_path: Path) -> None:
    image = nib.Nifti1Pair((np.arange(24).reshape(2, 3, 4, 1)).astype(np.int16), OBLIQUE)
    image.header.set_slope_inter(2.0, -5.0)
    nib.save(image, tmp_path / "pair.img")
    for half in ("pair.img", "pair.hdr"):
        volume = read_volume(tmp_path / half)
        assert volume.array.shape == (1, 2, 3, 4)
        raw = np.asanyarray(nib.load(tmp_path / half).dataobj)[..., 0]
        np.testing.assert_allclose(volume.array[0], raw)
    (tmp_path / "pair.img").unlink()
    refusal("file_missing", tmp_path / "pair.hdr")


def test_nifti_slope_is_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full(SHAPE, 7, np.int16), OBLIQUE)
    nib.save(image, tmp_path / "s.nii")
    data = bytearray((tmp_path / "s.nii").read_bytes())
    data[112:120] = np.array([2.0, -5.0], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "s.nii").write_bytes(bytes(data))
    assert (read_volume(tmp_path / "s.nii").array == 9).all()


def test_channels_need_one_grid(tmp_path: Path) -> None:
    first, second = save(tmp_path / "P_0000.nii.gz", scan()), save(tmp_path / "P_0001.nii.gz", scan() + 1)
    volume = read_volume([first, second])
    assert volume.array.shape == (2, *SHAPE)
    assert volume.name == "P"
    np.testing.assert_array_equal(volume.array[1], scan() + 1)
    moved = save(tmp_path / "P_0002.nii.gz", scan(), OBLIQUE + np.eye(4)[:, 3:] * 0 + np.diag([0, 0, 0.1, 0]))
    with pytest.raises(InputError, match="P_0002") as caught:
        read_volume([first, moved])
    assert caught.value.code == "channels_differ"


def test_frames(tmp_path: Path) -> None:
    path = save(tmp_path / "time.nii.gz", np.stack([scan(), scan() + 1, scan() + 2], axis=-1))
    assert "3 frames" in refusal("four_dimensional", path).message
    np.testing.assert_array_equal(read_volume(path, frame=2).array[0], scan() + 2)
    refusal("frame_unknown", path, frame=3)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_frames_of_the_other_formats(tmp_path: Path, suffix: str) -> None:
    stack = np.stack([scan(), scan() + 1], axis=-1)
    sitk.WriteImage(sitk.GetImageFromArray(stack.T, isVector=False), str(tmp_path / f"four{suffix}"))
    refusal("four_dimensional", tmp_path / f"four{suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"four{suffix}", frame=1).array[0], scan() + 1)
    vector = sitk.GetImageFromArray(np.moveaxis(stack.T, 0, -1), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / f"list{suffix}"))
    np.testing.assert_array_equal(read_volume(tmp_path / f"list{suffix}", frame=1).array[0], scan() + 1)


def test_missing_orientation_is_noted(tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan(), OBLIQUE)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "lost.nii.gz")
    assert [note["code"] for note in read_volume(tmp_path / "lost.nii.gz").notes] == ["orientation_missing"]


# -- what is refused ---------------------------------------------------------------------------------------------


def test_missing_and_empty(tmp_path: Path) -> None:
    refusal("file_missing", tmp_path / "nowhere.nii.gz")
    for name in ("a.nii.gz", "a.nii", "a.nrrd", "a.dcm"):
        (tmp_path / name).touch()
        refusal("file_empty", tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.hdr", "a.nrrd", "a.mha", "a.pdf", "a.dcm", "a"])
@pytest.mark.parametrize(
    "content", [b"this is text\n" * 60, b"%PDF-1.7\n" + bytes(range(256)) * 8], ids=["text", "pdf"]
)
def test_not_a_volume(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal("not_a_volume", tmp_path / name)


def test_gzipped_text(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"this is text\n" * 60))
    refusal("not_a_volume", tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_truncated(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    write_scalar_map(path, scan((30, 30, 30)), Geometry((30, 30, 30), OBLIQUE))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refusal("file_truncated", path)


def test_truncated_within_the_header(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.nii.gz", scan((30, 30, 30)))
    path.write_bytes(path.read_bytes()[:60])
    refusal("file_truncated", path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_that_claims_too_much(tmp_path: Path, suffix: str) -> None:
    data = bytearray(save(tmp_path / "plain.nii", scan()).read_bytes())
    data[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()  # dim: 131 TB
    path = tmp_path / f"huge{suffix}"
    path.write_bytes(gzip.compress(bytes(data)) if suffix.endswith("gz") else bytes(data))
    refusal("too_large", path)


def test_flat_and_coloured(tmp_path: Path) -> None:
    refusal("two_dimensional", save(tmp_path / "flat.nii.gz", scan((7, 6))))
    sitk.WriteImage(sitk.GetImageFromArray(scan((7, 6))), str(tmp_path / "flat.nrrd"))
    refusal("two_dimensional", tmp_path / "flat.nrrd")
    colors = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refusal("colour_image", save(tmp_path / "rgb.nii.gz", colors))
    refusal("colour_image", save(tmp_path / "vector.nii.gz", scan((7, 6, 5, 1, 3))))
    picture = sitk.GetImageFromArray(np.zeros((5, 6, 7, 3), np.uint8), isVector=True)
    sitk.WriteImage(picture, str(tmp_path / "rgb.mha"))
    refusal("colour_image", tmp_path / "rgb.mha")


def test_not_finite_says_how_many(tmp_path: Path) -> None:
    broken = scan()
    broken[0, 0, :3] = [np.nan, np.inf, -np.inf]
    path = save(tmp_path / "nan.nii.gz", broken)
    assert "3 voxels" in refusal("not_finite", path).message
    refusal("not_finite", path, read_label_map)
    opposite = scan()
    opposite[0, 0, :2] = [np.inf, -np.inf]
    assert "2 voxels" in refusal("not_finite", save(tmp_path / "inf.nii", opposite)).message


@pytest.mark.parametrize("column", [[0, 0, 0], [np.nan, 0, 1], "copy"])
def test_degenerate_geometry(tmp_path: Path, column: object) -> None:
    path = save(tmp_path / "d.nii", scan())
    affine = OBLIQUE[:3].copy()
    affine[:, 2] = affine[:, 1] if column == "copy" else column
    data = bytearray(path.read_bytes())
    data[280:328] = affine.astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(bytes(data))
    refusal("geometry_degenerate", path)


# -- labels ------------------------------------------------------------------------------------------------------


def test_labels_take_the_smallest_type(tmp_path: Path) -> None:
    for highest, kind in ((1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)):
        array = np.zeros(SHAPE, np.float64)
        array[1, 2, 3] = highest
        labels = read_label_map(save(tmp_path / "l.nii.gz", array))
        assert labels.array.dtype == kind
        assert labels.array.shape == (1, *SHAPE)
        assert labels.array[0, 1, 2, 3] == highest


def test_labels_saved_with_a_slope_are_whole_again(tmp_path: Path) -> None:
    """nibabel scales floats into whole numbers: 1 comes back as 1.00001526."""
    array = np.zeros(SHAPE)
    array[1:3], array[4] = 1, 2
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(array, OBLIQUE, header), tmp_path / "scaled.nii.gz")
    assert set(np.unique(np.asarray(nib.load(tmp_path / "scaled.nii.gz").dataobj))) - {0.0, 1.0, 2.0}
    np.testing.assert_array_equal(read_label_map(tmp_path / "scaled.nii.gz").array[0], array)


def test_labels_refused(tmp_path: Path) -> None:
    refusal("labels_not_whole", save(tmp_path / "scan.nii.gz", scan()), read_label_map)
    refusal("labels_negative", save(tmp_path / "neg.nii.gz", np.full(SHAPE, -1, np.int16)), read_label_map)
    refusal("labels_not_whole", save(tmp_path / "blurred.nii.gz", np.full(SHAPE, 0.99, np.float32)), read_label_map)
    empty = save(tmp_path / "zero.nii.gz", np.zeros(SHAPE, np.uint8))
    refusal("empty_label", empty, read_label_map)
    assert not read_label_map(empty, allow_empty=True).array.any()


def test_geometry_mismatch_names_both(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "image.nii.gz", scan()))
    same = read_label_map(save(tmp_path / "same.nii.gz", np.ones(SHAPE, np.uint8)))
    check_same_geometry(image, same)
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 4.0
    for labels, says in (
        (read_label_map(save(tmp_path / "off.nii.gz", np.ones(SHAPE, np.uint8), shifted)), "4 mm"),
        (read_label_map(save(tmp_path / "small.nii.gz", np.ones((7, 6, 4), np.uint8))), "7x6x4"),
    ):
        with pytest.raises(InputError) as caught:
            check_same_geometry(image, labels)
        assert caught.value.code == "geometry_mismatch"
        assert all(part in caught.value.message for part in ("image.nii.gz", labels.source.name, says))


def test_labels_stored_otherwise_are_turned_and_padded(tmp_path: Path) -> None:
    image = Volume(scan()[None], Geometry(SHAPE, OBLIQUE))
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2:5, 1:4, 3] = np.arange(1, 10).reshape(3, 3)
    part = drawn[1:6, 0:5, 2:5].transpose(2, 0, 1)[:, ::-1, :]  # cropped, permuted, flipped
    move = np.array([[0, -1, 0, 5], [0, 0, 1, 0], [1, 0, 0, 2], [0, 0, 0, 1.0]])  # its voxels -> the image's
    stored = Volume(part[None], Geometry(part.shape, OBLIQUE @ move))
    np.testing.assert_array_equal(align_label_map(image, stored).array[0], drawn)
    outside = Volume(part[None], Geometry(part.shape, OBLIQUE @ move @ nib.affines.from_matvec(np.eye(3), [2, 0, 0])))
    with pytest.raises(InputError, match="does not lie"):
        align_label_map(image, outside)
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, 0, 0))
    with pytest.raises(InputError, match="does not lie"):
        align_label_map(image, Volume(drawn[None], Geometry(SHAPE, OBLIQUE @ turned)))


# -- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", WRITTEN_SUFFIXES)
def test_label_round_trip(tmp_path: Path, suffix: str) -> None:
    labels = np.zeros(SHAPE, np.uint16)
    labels[1:3], labels[4, 2:4] = 3, 300
    path = tmp_path / "Ordner mit Ü" / f"case 1{suffix}"
    write_label_map(path, labels, Geometry(SHAPE, OBLIQUE))
    back = read_label_map(path)
    np.testing.assert_array_equal(back.array[0], labels)
    np.testing.assert_allclose(back.affine, OBLIQUE, atol=1e-5)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_nifti_header(tmp_path: Path, affine: np.ndarray) -> None:
    affine = affine.astype(np.float32).astype(np.float64)  # what a NIfTI file can say
    write_label_map(tmp_path / "l.nii.gz", np.ones(SHAPE, np.uint8), Geometry(SHAPE, affine))
    header = nib.load(tmp_path / "l.nii.gz").header
    np.testing.assert_array_equal(header.get_sform(), affine)
    assert int(header["sform_code"]) == 2
    assert header.get_xyzt_units()[0] == "mm"
    assert int(header["qform_code"]) == (1 if affine is not SHEARED and np.allclose(affine, OBLIQUE) else 0)
    if int(header["qform_code"]):
        np.testing.assert_allclose(header.get_qform(), affine, atol=1e-4)


def test_segmentation_for_slicer(tmp_path: Path) -> None:
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
def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, suffix: str, monkeypatch) -> None:
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
def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path, suffix: str) -> None:
    path, geometry = tmp_path / f"l{suffix}", Geometry(SHAPE, OBLIQUE)
    write_label_map(path, np.ones(SHAPE, np.uint8), geometry)
    before, held = path.read_bytes(), tmp_path / f"held{suffix}"
    held.hardlink_to(path)
    write_label_map(path, np.full(SHAPE, 2, np.uint8), geometry)
    assert held.read_bytes() == before
    assert (read_label_map(path).array == 2).all()


def test_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"l\.png"):
        write_label_map(tmp_path / "l.png", np.ones(SHAPE, np.uint8), Geometry(SHAPE, OBLIQUE))
    with pytest.raises(ValueError, match="shape"):
        write_label_map(tmp_path / "l.nii", np.ones((2, 2, 2), np.uint8), Geometry(SHAPE, OBLIQUE))
    with pytest.raises(ValueError, match="whole numbers"):
        write_label_map(tmp_path / "l.nii", np.ones(SHAPE, np.float32), Geometry(SHAPE, OBLIQUE))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/NAME_0000.nii.gz", "NAME"),
        ("a/NAME.nii.gz", "NAME"),
        ("NAME.seg.nrrd", "NAME"),
        ("NAME.v2.mha", "NAME.v2"),
        ("visit_2019.nii.gz", "visit_2019"),
        ("a/1.2.840.113", "1.2.840.113"),
        ("a/NAME/one.dcm", "NAME"),
    ],
)
def test_case_name(path: str, name: str) -> None:
    assert case_name(Path(path)) == name


# -- DICOM -------------------------------------------------------------------------------------------------------


def stack(count: int, step: tuple[float, float, float] = (0, 0, 2.5)) -> np.ndarray:
    return np.array([-20.0, -10.0, 30.0]) + np.arange(count)[:, None] * np.array(step)


def height(lps: np.ndarray) -> np.ndarray:
    return np.rint(lps[..., 2] * 10)


def test_regular_series(tmp_path: Path) -> None:
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


def test_single_slice_series(tmp_path: Path) -> None:
    write_series(tmp_path / "one", stack(1))
    volume = read_volume(tmp_path / "one")
    assert volume.shape == (40, 32, 1)
    np.testing.assert_allclose(volume.spacing, (1, 1, 5))  # the slice thickness


def test_several_series_are_listed(tmp_path: Path) -> None:
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


def test_localizers_and_copies_are_left_out(tmp_path: Path) -> None:
    write_series(tmp_path, stack(6), value=height)
    write_series(tmp_path, stack(1), row=(0, 1, 0), column=(0, 0, -1), prefix="scout", first_number=50)
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "slice_002.dcm").read_bytes())
    volume = read_volume(tmp_path)
    assert volume.shape == (40, 32, 6)
    np.testing.assert_array_equal(volume.array[0, 0, 0], [300, 325, 350, 375, 400, 425])
    assert [note["code"] for note in volume.notes] == ["slices_left_out", "slices_left_out"]


def test_two_times_in_one_series_need_a_choice(tmp_path: Path) -> None:
    write_series(tmp_path, stack(5), value=height)
    write_series(tmp_path, stack(5), value=lambda p: height(p) + 1, prefix="later", first_number=6)
    assert "2 frames" in refusal("four_dimensional", tmp_path).message
    assert read_volume(tmp_path, frame=1).array[0, 0, 0, 0] == 301
    (tmp_path / "later_003.dcm").unlink()
    refusal("duplicate_slices", tmp_path)


def test_no_dicom_here(tmp_path: Path) -> None:
    refusal("no_dicom", tmp_path)


@pytest.mark.parametrize("reverse", [False, True])
def test_gantry_tilt(tmp_path: Path, reverse: bool) -> None:
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


def test_missing_slice_is_noted(tmp_path: Path) -> None:
    write_series(tmp_path / "m", np.delete(stack(9), 4, axis=0))
    volume = read_volume(tmp_path / "m")
    assert [note["code"] for note in volume.notes] == ["uneven_slices"]
    assert "2.5 to 5.0 mm" in volume.notes[0]["message"]
    np.testing.assert_allclose(volume.spacing[2], 20.0 / 7)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_damaged_files_give_typed_errors(tmp_path: Path, suffix: str) -> None:
    """Whatever bytes are wrong: one of our errors, or still a volume; never a foreign exception."""
    rng, path, refused = np.random.default_rng(1), tmp_path / f"x{suffix}", 0
    write_scalar_map(path, scan(), Geometry(SHAPE, OBLIQUE))
    good = path.read_bytes()
    for _ in range(40):
        bad = bytearray(good)
        for place in rng.integers(0, min(len(bad), 400), 4):
            bad[place] = rng.integers(256)
        path.write_bytes(bytes(bad))
        try:
            read_volume(path)
        except InputError:
            refused += 1
    assert refused > 5

"""Scans and label maps are read right, or refused with a typed error that names the file."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from volume_files import OBLIQUE, SHAPE, SHEARED, refusal, save, scan

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.file_names import case_name
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.io.writers import write_scalar_map


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_scalar_map_written_and_read_is_unchanged(tmp_path: Path, suffix: str, affine: np.ndarray) -> None:
    path = tmp_path / f"Größe und 名前{suffix}"
    write_scalar_map(path, scan(), Geometry(SHAPE, affine))
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], scan())
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.name == "Größe und 名前"
    assert volume.notes == ()


def test_lps_formats_and_nifti_give_the_same_geometry(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(scan().T)
    image.SetOrigin((10.0, 20.0, 30.0))
    image.SetSpacing((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    from_nrrd, from_nifti = read_volume(tmp_path / "a.nrrd"), read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(from_nrrd.affine @ [0, 0, 0, 1], [-10, -20, 30, 1])
    np.testing.assert_allclose(from_nrrd.affine, from_nifti.affine, atol=1e-5)


def test_nifti_slope_pair_and_trailing_axes_are_read(tmp_path: Path) -> None:
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


def test_nifti_slope_is_applied_to_voxels(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.full(SHAPE, 7, np.int16), OBLIQUE)
    nib.save(image, tmp_path / "s.nii")
    data = bytearray((tmp_path / "s.nii").read_bytes())
    data[112:120] = np.array([2.0, -5.0], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "s.nii").write_bytes(bytes(data))
    assert (read_volume(tmp_path / "s.nii").array == 9).all()


@pytest.mark.parametrize(
    ("stored", "kept"), [(np.int16, np.int16), (np.uint8, np.uint8), (np.int32, np.float32), (np.float64, np.float32)]
)
def test_integers_of_up_to_16_bits_are_kept_on_request(tmp_path: Path, stored: type, kept: type) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(stored)
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=stored), tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz", keep_integers=True)
    assert volume.array.dtype == kept
    np.testing.assert_array_equal(volume.array, read_volume(tmp_path / "scan.nii.gz").array)


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    first, second = save(tmp_path / "P_0000.nii.gz", scan()), save(tmp_path / "P_0001.nii.gz", scan() + 1)
    volume = read_volume([first, second])
    assert volume.array.shape == (2, *SHAPE)
    assert volume.name == "P"
    np.testing.assert_array_equal(volume.array[1], scan() + 1)
    moved = save(tmp_path / "P_0002.nii.gz", scan(), OBLIQUE + np.eye(4)[:, 3:] * 0 + np.diag([0, 0, 0.1, 0]))
    with pytest.raises(InputError, match="P_0002") as caught:
        read_volume([first, moved])
    assert caught.value.code == "channels_differ"


def test_four_dimensional_nifti_needs_a_frame(tmp_path: Path) -> None:
    path = save(tmp_path / "time.nii.gz", np.stack([scan(), scan() + 1, scan() + 2], axis=-1))
    assert "3 frames" in refusal("four_dimensional", path).message
    np.testing.assert_array_equal(read_volume(path, frame=2).array[0], scan() + 2)
    refusal("frame_unknown", path, frame=3)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_four_dimensional_itk_file_needs_a_frame(tmp_path: Path, suffix: str) -> None:
    stack = np.stack([scan(), scan() + 1], axis=-1)
    sitk.WriteImage(sitk.GetImageFromArray(stack.T, isVector=False), str(tmp_path / f"four{suffix}"))
    refusal("four_dimensional", tmp_path / f"four{suffix}")
    np.testing.assert_array_equal(read_volume(tmp_path / f"four{suffix}", frame=1).array[0], scan() + 1)
    vector = sitk.GetImageFromArray(np.moveaxis(stack.T, 0, -1), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / f"list{suffix}"))
    np.testing.assert_array_equal(read_volume(tmp_path / f"list{suffix}", frame=1).array[0], scan() + 1)


def test_nifti_without_orientation_is_noted(tmp_path: Path) -> None:
    image = nib.Nifti1Image(scan(), OBLIQUE)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, tmp_path / "lost.nii.gz")
    assert [note["code"] for note in read_volume(tmp_path / "lost.nii.gz").notes] == ["orientation_missing"]


def test_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    refusal("file_missing", tmp_path / "nowhere.nii.gz")
    for name in ("a.nii.gz", "a.nii", "a.nrrd", "a.dcm"):
        (tmp_path / name).touch()
        refusal("file_empty", tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.hdr", "a.nrrd", "a.mha", "a.pdf", "a.dcm", "a"])
@pytest.mark.parametrize(
    "content", [b"this is text\n" * 60, b"%PDF-1.7\n" + bytes(range(256)) * 8], ids=["text", "pdf"]
)
def test_file_of_no_known_format_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    refusal("not_a_volume", tmp_path / name)


def test_compressed_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"this is text\n" * 60))
    refusal("not_a_volume", tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    write_scalar_map(path, scan((30, 30, 30)), Geometry((30, 30, 30), OBLIQUE))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refusal("file_truncated", path)


def test_file_truncated_in_its_header_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.nii.gz", scan((30, 30, 30)))
    path.write_bytes(path.read_bytes()[:60])
    refusal("file_truncated", path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_header_with_more_voxels_than_memory_is_refused(tmp_path: Path, suffix: str) -> None:
    data = bytearray(save(tmp_path / "plain.nii", scan()).read_bytes())
    data[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()  # dim: 131 TB
    path = tmp_path / f"huge{suffix}"
    path.write_bytes(gzip.compress(bytes(data)) if suffix.endswith("gz") else bytes(data))
    refusal("too_large", path)


def test_two_dimensional_and_color_images_are_refused(tmp_path: Path) -> None:
    refusal("two_dimensional", save(tmp_path / "flat.nii.gz", scan((7, 6))))
    sitk.WriteImage(sitk.GetImageFromArray(scan((7, 6))), str(tmp_path / "flat.nrrd"))
    refusal("two_dimensional", tmp_path / "flat.nrrd")
    colors = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    refusal("colour_image", save(tmp_path / "rgb.nii.gz", colors))
    refusal("colour_image", save(tmp_path / "vector.nii.gz", scan((7, 6, 5, 1, 3))))
    picture = sitk.GetImageFromArray(np.zeros((5, 6, 7, 3), np.uint8), isVector=True)
    sitk.WriteImage(picture, str(tmp_path / "rgb.mha"))
    refusal("colour_image", tmp_path / "rgb.mha")


def test_voxels_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    broken = scan()
    broken[0, 0, :3] = [np.nan, np.inf, -np.inf]
    path = save(tmp_path / "nan.nii.gz", broken)
    assert "3 voxels" in refusal("not_finite", path).message
    refusal("not_finite", path, read_label_map)
    opposite = scan()
    opposite[0, 0, :2] = [np.inf, -np.inf]
    assert "2 voxels" in refusal("not_finite", save(tmp_path / "inf.nii", opposite)).message


@pytest.mark.parametrize("column", [[0, 0, 0], [np.nan, 0, 1], "copy"])
def test_degenerate_affine_is_refused(tmp_path: Path, column: object) -> None:
    path = save(tmp_path / "d.nii", scan())
    affine = OBLIQUE[:3].copy()
    affine[:, 2] = affine[:, 1] if column == "copy" else column
    data = bytearray(path.read_bytes())
    data[280:328] = affine.astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    path.write_bytes(bytes(data))
    refusal("geometry_degenerate", path)


def test_label_map_has_the_smallest_type(tmp_path: Path) -> None:
    for highest, kind in ((1, np.uint8), (255, np.uint8), (256, np.uint16), (70000, np.uint32)):
        array = np.zeros(SHAPE, np.float64)
        array[1, 2, 3] = highest
        labels = read_label_map(save(tmp_path / "l.nii.gz", array))
        assert labels.array.dtype == kind
        assert labels.array.shape == (1, *SHAPE)
        assert labels.array[0, 1, 2, 3] == highest


def test_label_map_saved_with_a_slope_is_rounded(tmp_path: Path) -> None:
    """nibabel scales floats into whole numbers: 1 comes back as 1.00001526."""
    array = np.zeros(SHAPE)
    array[1:3], array[4] = 1, 2
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(array, OBLIQUE, header), tmp_path / "scaled.nii.gz")
    assert set(np.unique(np.asarray(nib.load(tmp_path / "scaled.nii.gz").dataobj))) - {0.0, 1.0, 2.0}
    np.testing.assert_array_equal(read_label_map(tmp_path / "scaled.nii.gz").array[0], array)


def test_label_map_with_other_values_is_refused(tmp_path: Path) -> None:
    refusal("labels_not_whole", save(tmp_path / "scan.nii.gz", scan()), read_label_map)
    refusal("labels_negative", save(tmp_path / "neg.nii.gz", np.full(SHAPE, -1, np.int16)), read_label_map)
    refusal("labels_not_whole", save(tmp_path / "blurred.nii.gz", np.full(SHAPE, 0.99, np.float32)), read_label_map)
    empty = save(tmp_path / "zero.nii.gz", np.zeros(SHAPE, np.uint8))
    refusal("empty_label", empty, read_label_map)
    assert not read_label_map(empty, allow_empty=True).array.any()


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
def test_case_name_of_a_path(path: str, name: str) -> None:
    assert case_name(Path(path)) == name


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_damaged_file_gives_a_typed_error(tmp_path: Path, suffix: str) -> None:
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

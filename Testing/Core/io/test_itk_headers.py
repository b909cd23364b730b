"""Headers of NRRD and MetaImage files are accepted as common writers make them, and refused otherwise."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from itk_files import META, VOXELS, meta, nrrd

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.itk_headers import check_header
from HiEndMAECore.io.readers import read_label_map, read_volume


def refused(path: Path, field: str, code: str = "not_a_volume") -> InputError:
    """The refusal of the header alone: ITK is not reached."""
    with pytest.raises(InputError) as caught:
        check_header(path)
    assert caught.value.code == code, str(caught.value)
    assert path.name in caught.value.message
    assert field in caught.value.message
    assert caught.value.advice
    with pytest.raises(InputError):
        read_volume(path)
    return caught.value


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32, np.float64])
def test_header_written_by_simpleitk_is_accepted(tmp_path: Path, suffix: str, packed: bool, kind: type) -> None:
    image = sitk.GetImageFromArray(VOXELS.astype(kind))
    image.SetDirection([0.36, 0.48, -0.8, -0.8, 0.6, 0, 0.48, 0.64, 0.6])
    image.SetSpacing([0.123456789012, 1e-3, 12.5])
    image.SetOrigin([-123.456789012345, 1e-17, 98765.4321])
    image.SetMetaData("Study", "with: colons = and %s signs, Größe")
    path = tmp_path / f"my scan 名前{suffix}"
    sitk.WriteImage(image, str(path), packed)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], VOXELS.T)
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), image.GetSpacing(), rtol=1e-6)


def test_header_written_by_slicer_is_accepted(tmp_path: Path) -> None:
    """Long lines of custom keys, comments, missing directions and numbers, and both spellings of a field."""
    lines = [
        "# Complete NRRD file format specification at:",
        'labels: "x" "y" "z"',
        'space units: "mm" "mm" "mm"',
        "thicknesses: nan NaN 3",
        "measurementframe: (1,0,0) (0,1,0) (0,0,1)",
        "content: a scan, cropped " + "and padded " * 400,
        f"Segment0_Tags:=TerminologyEntry:{'Anatomy~SCT^123^Organ: one|' * 50_000}",
        f"axis type:={'percent %s%n and equals = signs ' * 100}",
        *(f"Segment{index}_Color:=0.5 0.25 1" for index in range(1500)),
    ]
    path = nrrd(tmp_path / "drawn.seg.nrrd", *lines, encoding="gzip", voxels=gzip.compress(VOXELS.tobytes()))
    np.testing.assert_array_equal(read_label_map(path).array[0], VOXELS.T)
    windows = tmp_path / "windows.nrrd"
    windows.write_bytes(nrrd(windows, voxels=b"").read_bytes().replace(b"\n", b"\r\n") + VOXELS.tobytes())
    np.testing.assert_array_equal(read_volume(windows).array[0], VOXELS.T)


def test_sequence_and_layered_segmentation_are_accepted(tmp_path: Path) -> None:
    """A first axis without direction: frames of Slicer's sequences, layers of its segmentations."""
    frames = np.stack([VOXELS, VOXELS + 1], axis=-1)
    many = {
        "dimension": "4", "sizes": "2 6 5 4", "kinds": "list domain domain domain",
        "space_directions": "none (1,0,0) (0,2,0) (0,0,3)",
    }  # fmt: skip
    path = nrrd(tmp_path / "sequence.nrrd", voxels=frames.tobytes(), **many)
    np.testing.assert_array_equal(read_volume(path, frame=1).array[0], (VOXELS + 1).T)


def test_custom_fields_of_metaimage_are_accepted(tmp_path: Path) -> None:
    lines = ["Patient Comment: long " + "text %d " * 3000, "Empty =", "ElementMin = -1e30", "Comment = 50 % of it"]
    path = meta(tmp_path / "a.mha", *lines)
    np.testing.assert_array_equal(read_volume(path).array[0], VOXELS.T)


@pytest.mark.parametrize("name", ["my scan.raw", "Größe 名前.raw", "a-b_c (1).raw"])
def test_data_file_beside_the_header_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(VOXELS.tobytes())
    header = meta(tmp_path / "a.mhd", ElementDataFile=name, voxels=b"")
    np.testing.assert_array_equal(read_volume(header).array[0], VOXELS.T)
    header = nrrd(tmp_path / "a.nhdr", data_file=name, voxels=b"")
    np.testing.assert_array_equal(read_volume(header).array[0], VOXELS.T)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", "A" * 1200), ("type", "block"), ("type", "char"), ("type", ""), ("type", None),
        ("dimension", "A" * 1200), ("dimension", "0"), ("dimension", "-1"), ("dimension", "17"), ("dimension", "3.5"),
        ("dimension", "4"), ("sizes", "6 5"), ("sizes", "6 5 4 3"), ("sizes", "6 0 4"), ("sizes", "6 -5 4"),
        ("sizes", "1e3 5 4"), ("sizes", "2000000000 2000000000 2000000000"), ("sizes", "9" * 400), ("sizes", None),
        ("encoding", "A" * 1200), ("encoding", "lzma"), ("encoding", None), ("kinds", "A" * 1200),
        ("endian", "A" * 1200), ("space", "A" * 1200), ("space directions", "(1,0,0) (0,inf,0) (0,0,3)"),
        ("space directions", "(1,0,0) (0,1e308,0) (0,0,3)"), ("space directions", "(1,0,0) (0,x,0) (0,0,3)"),
        ("space origin", "(0,0,1e400)"), ("space origin", "(0," + "0" * 1200 + ",1)"), ("spacings", "1 -inf 1"),
        ("spacings", "1 1_0 1"), ("thicknesses", "1e7 nan nan"), ("byte skip", "-7"), ("line skip", "x"),
        ("space dimension", "99"), ("labels", "\"" + "A" * 1200),
    ],
)  # fmt: skip
def test_damaged_nrrd_header_is_refused(tmp_path: Path, field: str, value: str | None) -> None:
    refused(nrrd(tmp_path / "a.nrrd", **{field.replace(" ", "_"): value}), field)


@pytest.mark.parametrize(
    "line",
    [
        "type: short", "centers: cell cell cell\ncenterings: cell cell cell", "no field at all", "unknown: 3",
        "key/value: a", "A" * 1200, "content: a\rtype: " + "A" * 1200, "content: a\0b", " ",
    ],
)  # fmt: skip
def test_line_without_a_field_is_refused(tmp_path: Path, line: str) -> None:
    refused(nrrd(tmp_path / "a.nrrd", line), "header field")


def test_header_without_end_is_refused(tmp_path: Path) -> None:
    refused(nrrd(tmp_path / "many.nrrd", *["key:=value"] * 20_000), "key:=value")
    refused(nrrd(tmp_path / "long.nrrd", "key:=" + "A" * 5_000_000), "key:=")
    refused(meta(tmp_path / "many.mha", *["a = b"] * 20_000), "a = b")
    refused(meta(tmp_path / "long.mha", "a = " + "b" * 40_000), "a = ")
    refused(meta(tmp_path / "name.mha", "a" * 400 + " = b"), "aaa")
    whole = nrrd(tmp_path / "cut.nrrd", voxels=b"").read_bytes()
    (tmp_path / "cut.nrrd").write_bytes(whole.rstrip(b"\n"))
    refused(tmp_path / "cut.nrrd", "cut short", "file_truncated")
    (tmp_path / "cut.mha").write_bytes(meta(tmp_path / "cut.mha").read_bytes()[:100])
    refused(tmp_path / "cut.mha", "ElementDataFile")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("NDims", "-1"), ("NDims", "0"), ("NDims", "1"), ("NDims", "11"), ("NDims", "99"), ("NDims", "1e308"),
        ("NDims", "3.5"), ("NDims", "three"), ("NDims", ""), ("NDims", None), ("DimSize", "6 5"), ("DimSize", "6 5 0"),
        ("DimSize", "6 5 -4"), ("DimSize", "6 5 4 3"), ("DimSize", "6 5 1e9"), ("DimSize", "9999999999 5 4"),
        ("DimSize", "2000000000 2000000000 2000000000"), ("DimSize", None), ("TransformMatrix", "1 0 0 0 1 0 0 0"),
        ("TransformMatrix", "1e308 0 0 0 1 0 0 0 1"), ("TransformMatrix", "nan 0 0 0 1 0 0 0 1"),
        ("Offset", "0 0 inf"), ("Offset", "0 0 1e7"), ("Offset", "0 0"), ("Offset", "0 0 0x10"),
        ("ElementSpacing", "1 1 1e999"), ("ElementSpacing", "1 1 one"), ("ElementSpacing", ""),
        ("ElementType", "MET_STRING"), ("ElementType", "A" * 1200), ("ElementType", None), ("ElementType", "short"),
        ("CompressedDataSize", "1e308"), ("CompressedDataSize", "-5"), ("HeaderSize", "-2"), ("HeaderSize", "1e308"),
        ("ElementNumberOfChannels", "0"), ("ElementNumberOfChannels", "-1"), ("ElementNumberOfChannels", "1e308"),
        ("Comment", "A" * 400), ("ObjectType", "A" * 400), ("Name", "%s" * 200),
        ("ElementDataFile", "a.raw"), ("ElementDataFile", "/etc/passwd"), ("ElementDataFile", "%s%s%s%n.raw"),
        ("ElementDataFile", "LIST"), ("ElementDataFile", ""),
    ],
)  # fmt: skip
def test_damaged_metaimage_header_is_refused(tmp_path: Path, field: str, value: str | None) -> None:
    last = {"ElementDataFile": META["ElementDataFile"]} if field != "ElementDataFile" else {}
    header = {name: text for name, text in META.items() if name not in ("ElementDataFile", field)}
    header = {"NDims": header.pop("NDims"), **header} if "NDims" in header else header
    lines = [f"{name} = {text}" for name, text in {**header, field: value, **last}.items() if text is not None]
    if field == "NDims":
        lines.sort(key=lambda line: not line.startswith("NDims"))
    (tmp_path / "a.mha").write_bytes(("\n".join(lines) + "\n").encode() + VOXELS.tobytes())
    refused(tmp_path / "a.mha", field)


def test_ambiguous_metaimage_header_is_refused(tmp_path: Path) -> None:
    refused(meta(tmp_path / "twice.mha", "NDims = -1"), "NDims")
    refused(meta(tmp_path / "free.mha", "a line without any separator"), "a line without")
    refused(meta(tmp_path / "nul.mha", "a\0b = c"), "header field")
    text = meta(tmp_path / "late.mha").read_bytes().replace(b"NDims = 3\n", b"")
    (tmp_path / "late.mha").write_bytes(text.replace(b"ElementType", b"NDims = 3\nElementType"))
    refused(tmp_path / "late.mha", "NDims")


@pytest.mark.parametrize(
    "name",
    [
        "../a.raw", "/etc/passwd", "sub/a.raw", "..\\a.raw", "C:a.raw", "C:\\a.raw", "..", "-", "LIST", "LIST 2",
        "my%20scan.raw", "my scan 5%.raw", "%s%s%s%n.raw", "slice.%03d.raw 1 4 1", "a" * 300, "a.mhd", "a.nhdr",
    ],
)  # fmt: skip
def test_data_file_with_a_path_or_pattern_is_refused(tmp_path: Path, name: str) -> None:
    if len(name) < 200 and "/" not in name and name not in ("..", "a.mhd", "a.nhdr"):
        (tmp_path / name).write_bytes(VOXELS.tobytes())  # what ITK would read is there
    if name != "a.nhdr":
        error = refused(meta(tmp_path / "a.mhd", ElementDataFile=name, voxels=b""), "ElementDataFile")
        assert ("Rename" in error.advice) == ("%" in name)
    if name != "a.mhd":
        refused(nrrd(tmp_path / "a.nhdr", data_file=name, voxels=b""), "data file")


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    refused(meta(tmp_path / "a.mhd", ElementDataFile="gone.raw", voxels=b""), "gone.raw", "file_missing")
    refused(nrrd(tmp_path / "a.nhdr", data_file="gone.raw", voxels=b""), "gone.raw", "file_missing")
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes())
    refused(nrrd(tmp_path / "a.nrrd", data_file="a.raw", voxels=b""), "data file")
    refused(meta(tmp_path / "a.mha", ElementDataFile="a.raw", voxels=b""), "ElementDataFile")


def test_header_with_more_voxels_than_its_file_is_refused(tmp_path: Path) -> None:
    refused(nrrd(tmp_path / "raw.nrrd", sizes="600 500 400"), "cut short", "file_truncated")
    refused(nrrd(tmp_path / "gzip.nrrd", sizes="6000 5000 4000", encoding="gzip"), "cut short", "file_truncated")
    refused(meta(tmp_path / "raw.mha", DimSize="600 500 400"), "cut short", "file_truncated")
    refused(meta(tmp_path / "size.mha", "CompressedDataSize = 9999999"), "cut short", "file_truncated")

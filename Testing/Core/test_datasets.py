"""Which files make a case."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series

from HiEndMAECore.data.cases import find_cases
from HiEndMAECore.data.datasets import read_dataset
from HiEndMAECore.data.label_table import label_colors
from HiEndMAECore.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def found(*inputs: Path) -> dict[str, list[str]]:
    return {case.name: [path.name for path in case.channels] for case in find_cases(inputs)}


def test_everything_below_a_folder(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.nii.gz", "a/c.nrrd", "a/deep/d.mha", "a/e.seg.nrrd", "f.hdr", "f.img", "readme.md", ".hidden.nii"
    )
    touch(tmp_path, "labelsTr/b.nii.gz", ".cache/x.nii.gz")
    write_series(tmp_path / "patient 7", np.zeros((1, 3)))
    assert found(tmp_path) == {
        "b": ["b.nii.gz"],
        "c": ["c.nrrd"],
        "d": ["d.mha"],
        "e": ["e.seg.nrrd"],
        "f": ["f.hdr"],
        "patient 7": ["patient 7"],
    }
    assert "c" not in {case.name for case in find_cases([tmp_path], exclude=(tmp_path / "a").resolve())}


def test_channels_of_one_case(tmp_path: Path) -> None:
    touch(tmp_path, "P_0001.nii.gz", "P_0000.nii.gz", "Q_0000.nii.gz", "x/P_0000.nii.gz")
    cases = find_cases([tmp_path])
    assert sorted(len(case.channels) for case in cases) == [1, 1, 2]
    both = next(case for case in cases if len(case.channels) == 2)
    assert [path.name for path in both.channels] == ["P_0000.nii.gz", "P_0001.nii.gz"]
    assert "Q" in {case.name for case in cases}


def test_numbers_of_patients_are_not_channels(tmp_path: Path) -> None:
    touch(tmp_path, "case_0012.nii.gz", "case_0013.nii.gz", "visit_2019.nii.gz")
    assert list(found(tmp_path)) == ["case_0012", "case_0013", "visit_2019"]


def test_lists(tmp_path: Path) -> None:
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz", "c.nii.gz")
    (tmp_path / "list.txt").write_text("scans/b.nii.gz\n\n  c.nii.gz  \n", encoding="utf-8")
    assert list(found(tmp_path / "list.txt")) == ["b", "c"]
    assert list(found(tmp_path / "list.txt", tmp_path / "scans")) == ["a", "b", "c"]  # b once
    (tmp_path / "bad.txt").write_text("nowhere.nii.gz\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz"):
        find_cases([tmp_path / "bad.txt"])


def test_same_names_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "one/visit 1/ct.nii.gz", "two/visit 1/ct.nii.gz", "two/mr.nii.gz", "two/mr.nrrd", "three.nii.gz")
    names = [case.name for case in find_cases([tmp_path])]
    assert sorted(names) == ["mr_nii_gz", "mr_nrrd", "one_visit_1_ct", "three", "two_visit_1_ct"]


def test_one_dicom_file_stands_for_its_folder(tmp_path: Path) -> None:
    files = write_series(tmp_path / "ct", np.array([[0, 0, 0], [0, 0, 2.0]]))
    assert found(files[0], files[1]) == {"ct": ["ct"]}


def test_nothing_found(tmp_path: Path) -> None:
    for inputs in ([tmp_path], []):
        with pytest.raises(InputError) as caught:
            find_cases(inputs)
        assert caught.value.code == "no_scans"
    with pytest.raises(InputError) as caught:
        find_cases([touch(tmp_path, "a.pdf") / "a.pdf"])
    assert caught.value.code == "not_a_volume"


# -- datasets ----------------------------------------------------------------------------------------------------

NNUNET = {
    "name": "Two organs",
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "liver": 2, "spleen": 1, "ignore": 3},
    "file_ending": ".nii.gz",
}
IMAGES = ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz")


def dataset(folder: Path, data: object, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    touch(folder, *names)
    (folder / "dataset.json").write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return folder


def test_nnunet_layout(tmp_path: Path) -> None:
    more = ("imagesUnlabelled/c_0000.nii.gz", "imagesUnlabelled/c_0001.nii.gz", "imagesTs/t_0000.nii.gz")
    read = read_dataset(dataset(tmp_path, NNUNET, *IMAGES, *more, "labelsTr/a.nii.gz"))
    assert read.name == "Two organs"
    assert [(one.value, one.name) for one in read.structures] == [(1, "spleen"), (2, "liver")]
    assert len({one.color for one in read.structures}) == 2
    assert read.ignore == 3
    assert [case.name for case in read.cases] == ["a"]
    assert read.cases[0].label == tmp_path / "labelsTr/a.nii.gz"
    assert [path.name for path in read.cases[0].channels] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [case.name for case in read.unlabelled] == ["b", "c"]  # and no test scan
    assert read.channel_names == ("CT", "PET")


def test_nnunet_with_listed_files(tmp_path: Path) -> None:
    entry = {"k": {"images": ["x/k1.nii.gz", "x/k2.nii.gz"], "label": "y/k.nii.gz"}}
    read = read_dataset(dataset(tmp_path, NNUNET | {"dataset": entry}, "x/k1.nii.gz", "x/k2.nii.gz", "y/k.nii.gz"))
    assert read.cases[0].name == "k"
    assert len(read.cases[0].channels) == 2


def test_decathlon_layout(tmp_path: Path) -> None:
    data = {
        "name": "Spleen",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "training": [{"image": "./imagesTr/s_2.nii.gz", "label": "./labelsTr/s_2.nii.gz"}],
        "test": ["./imagesTs/s_1.nii.gz"],
    }
    read = read_dataset(dataset(tmp_path, data, "imagesTr/s_2.nii.gz", "labelsTr/s_2.nii.gz"))
    assert [(one.value, one.name) for one in read.structures] == [(1, "spleen")]
    assert [(case.name, case.channels[0].name) for case in read.cases] == [("s_2", "s_2.nii.gz")]
    assert read.channel_names == ("CT",)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "dataset_json_missing"
    with pytest.raises(InputError) as caught:
        read_dataset(dataset(tmp_path / "d", NNUNET, IMAGES[0], "labelsTr/a.nii.gz"))
    assert caught.value.code == "dataset_file_missing"
    assert "a_0001.nii.gz" in caught.value.message
    with pytest.raises(InputError) as caught:
        read_dataset(dataset(tmp_path / "e", NNUNET))
    assert caught.value.code == "dataset_empty"


@pytest.mark.parametrize(
    "data",
    [
        "{not json",
        [],
        {},
        NNUNET | {"labels": []},
        NNUNET | {"labels": {"background": 0}},
        NNUNET | {"labels": {"background": 0, "a": "one"}},
        NNUNET | {"labels": {"background": 0, "whole": [1, 2]}},
        NNUNET | {"labels": {"background": 0, "a": 1, "b": 1}},
        NNUNET | {"channel_names": ["CT"]},
        NNUNET | {"training": [{"image": "a"}]},
        NNUNET | {"dataset": {"a": {"images": ["x"]}}},
    ],
)
def test_ill_formed(tmp_path: Path, data: object) -> None:
    touch(tmp_path, "x")
    with pytest.raises(InputError) as caught:
        read_dataset(dataset(tmp_path, data, *IMAGES, "labelsTr/a.nii.gz"))
    assert caught.value.code == "dataset_json_ill_formed"
    assert "dataset.json" in caught.value.message


def test_colours() -> None:
    many = label_colors(120)
    assert len(set(many)) == 120
    assert many[:10] == label_colors(10)
    assert all(0 <= part <= 255 for color in many for part in color)
    assert all(max(color) > 100 for color in many)  # not lost on black
    first = np.array(many[:16], float)
    assert min(np.linalg.norm(a - b) for i, a in enumerate(first) for b in first[:i]) > 30

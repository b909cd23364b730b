"""Data sets in the layouts of nnU-Net and of the Decathlon are read, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dataset_files import touch

from HiEndMAECore.data.datasets import read_dataset
from HiEndMAECore.errors import InputError

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


def test_nnunet_data_set_is_read(tmp_path: Path) -> None:
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


def test_nnunet_data_set_with_listed_files_is_read(tmp_path: Path) -> None:
    entry = {"k": {"images": ["x/k1.nii.gz", "x/k2.nii.gz"], "label": "y/k.nii.gz"}}
    read = read_dataset(dataset(tmp_path, NNUNET | {"dataset": entry}, "x/k1.nii.gz", "x/k2.nii.gz", "y/k.nii.gz"))
    assert read.cases[0].name == "k"
    assert len(read.cases[0].channels) == 2


def test_decathlon_data_set_is_read(tmp_path: Path) -> None:
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


def test_data_set_with_missing_files_names_them(tmp_path: Path) -> None:
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
def test_ill_formed_data_set_is_refused(tmp_path: Path, data: object) -> None:
    touch(tmp_path, "x")
    with pytest.raises(InputError) as caught:
        read_dataset(dataset(tmp_path, data, *IMAGES, "labelsTr/a.nii.gz"))
    assert caught.value.code == "dataset_json_ill_formed"
    assert "dataset.json" in caught.value.message

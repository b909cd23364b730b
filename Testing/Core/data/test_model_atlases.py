"""The atlases of a model folder are read as the registration uses them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from model_files import describe

from HiEndMAECore.data.model_atlases import read_atlases
from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.errors import InputError
from HiEndMAECore.models.folder import write_model
from HiEndMAECore.registration.atlas import Atlas, build_atlas
from HiEndMAECore.registration.features import Features, RegistrationImage

STATE = {"weight": torch.zeros(2)}


@pytest.fixture
def atlas() -> Atlas:
    scan, labels = make_patient(1, shape=(40, 36, 36), spacing=(8.0, 8.0, 8.0))
    image = RegistrationImage(torch.from_numpy(scan.array[0]).clamp(0, 1), scan.geometry.affine)
    classes = torch.from_numpy(labels.array[0]).clamp(max=2)
    return build_atlas(image, classes, image.grid, name="Jane Doe", modality="ct")


@pytest.mark.parametrize("name", ["model", "model.zip"])
def test_atlases_of_a_model_are_read_back_without_their_names(tmp_path: Path, atlas: Atlas, name: str) -> None:
    without_tissue = Features(atlas.features.channels[1:], atlas.features.grid)
    labels = 1 + torch.zeros_like(atlas.labels)
    other = dataclasses.replace(atlas, features=without_tissue, labels=labels, modality="mri")
    write_model(tmp_path / name, describe(), STATE, (atlas, other))
    found = read_atlases(tmp_path / name)
    assert [item.name for item in found] == ["1", "2"]
    assert [item.modality for item in found] == ["ct", "mri"]
    for item, expected in zip(found, (atlas, other)):
        assert torch.equal(item.labels, expected.labels)
        assert torch.equal(item.features.channels, expected.features.channels)
        assert (item.label_grid.affine == expected.label_grid.affine).all()
    if name == "model":
        assert not any(b"Jane" in file.read_bytes() for file in (tmp_path / name).iterdir())


def test_model_without_an_atlas_has_none(tmp_path: Path) -> None:
    write_model(tmp_path / "model", describe(), STATE)
    assert read_atlases(tmp_path / "model") == ()


def test_atlas_with_a_label_that_the_model_does_not_have_is_refused(tmp_path: Path, atlas: Atlas) -> None:
    write_model(tmp_path / "model", describe(), STATE, (dataclasses.replace(atlas, labels=atlas.labels + 1),))
    with pytest.raises(InputError, match="atlas 1, its labels are 1 to 3, must be 0 to 2") as caught:
        read_atlases(tmp_path / "model")
    assert caught.value.code == "model_unusable"

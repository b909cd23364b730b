"""The atlas of a model: stored beside the weights, checked by its digest, and left out of copies unless asked for."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest
import torch
from model_files import describe
from safetensors.torch import save

from HiEndMAECore.errors import InputError
from HiEndMAECore.models import folder
from HiEndMAECore.models.atlas_file import StoredAtlas
from HiEndMAECore.models.conversion import main
from HiEndMAECore.models.description import ModelDescription

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"
STATE = {"weight": torch.arange(4.0)}


def atlas(seed: int = 0) -> StoredAtlas:
    generator = torch.Generator().manual_seed(seed)
    affine = [[4.0, 0.0, 0.0, -10.5], [0.0, 4.0, 0.0, 1 / 3], [0.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    metadata = {
        "modality": "ct",
        "features": {"shape": [3, 4, 5], "affine": affine},
        "labels": {"shape": [6, 8, 10], "affine": affine},
    }
    features = torch.randint(0, 256, (13, 3, 4, 5), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (6, 8, 10), generator=generator, dtype=torch.uint8)
    return StoredAtlas(metadata, {"features": features, "labels": labels})


def names(path: Path) -> list[str]:
    return sorted(zipfile.ZipFile(path).namelist()) if path.suffix == ".zip" else sorted(p.name for p in path.iterdir())


def change_json(path: Path, **values: object) -> None:
    file = path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with two atlases."""
    folder.write_model(tmp_path / "model", describe(), STATE, (atlas(0), atlas(1)))
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["model", "model.zip"])
def test_written_atlases_are_read_back_in_order(tmp_path: Path, name: str) -> None:
    written = folder.write_model(tmp_path / name, describe(), STATE, (atlas(0), atlas(1)))
    assert written.format_version == 2
    assert names(tmp_path / name) == ["atlas.safetensors", "model.json", "model.safetensors"]
    description, stored = folder.read_atlas_tensors(tmp_path / name)
    assert description == folder.read_description(tmp_path / name)
    assert description.model_sha256 == written.model_sha256
    assert len(stored) == 2
    for index, item in enumerate(stored):
        assert item.metadata == atlas(index).metadata
        assert all(torch.equal(item.tensors[key], value) for key, value in atlas(index).tensors.items())


def test_model_without_an_atlas_has_format_1_and_no_new_key(tmp_path: Path) -> None:
    written = folder.write_model(tmp_path / "model", describe(), STATE)
    assert written.format_version == 1
    assert names(tmp_path / "model") == ["model.json", "model.safetensors"]
    keys = list(json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8")))
    assert keys == list(json.loads((FORMAT_1 / "model" / "model.json").read_text(encoding="utf-8")))
    assert folder.read_atlas_tensors(tmp_path / "model")[1] == ()


@pytest.mark.parametrize("name", ["model", "model.zip"])
def test_model_of_format_1_has_no_atlas(name: str) -> None:
    description, stored = folder.read_atlas_tensors(FORMAT_1 / name)
    assert (description.format_version, stored) == (1, ())


def test_model_that_is_written_again_keeps_no_atlas_by_itself(model: Path) -> None:
    description, state = folder.read_model(model)
    written = folder.write_model(model, description, state)
    assert (written.format_version, written.atlas, written.atlas_sha256) == (1, (), "")
    assert names(model) == ["model.json", "model.safetensors"]


def test_copy_leaves_the_atlas_out_unless_asked_for(model: Path, tmp_path: Path) -> None:
    folder.copy_model(model, tmp_path / "plain.zip")
    assert names(tmp_path / "plain.zip") == ["model.json", "model.safetensors"]
    plain = folder.write_model(tmp_path / "never", describe(), STATE)
    assert zipfile.ZipFile(tmp_path / "plain.zip").read("model.json") == (tmp_path / "never/model.json").read_bytes()
    assert folder.read_description(tmp_path / "plain.zip").model_sha256 == plain.model_sha256
    folder.copy_model(model, tmp_path / "whole.zip", keep_atlas=True)
    folder.copy_model(tmp_path / "whole.zip", tmp_path / "whole", keep_atlas=True)
    for name in names(model):
        assert (tmp_path / "whole" / name).read_bytes() == (model / name).read_bytes()


def test_renamed_model_keeps_its_atlas(model: Path) -> None:
    folder.rename_model(model, "other")
    description, stored = folder.read_atlas_tensors(model)
    assert (description.name, description.format_version, len(stored)) == ("other", 2, 2)


def test_model_digest_covers_the_atlas(model: Path, tmp_path: Path) -> None:
    def digest(*atlases: StoredAtlas) -> str:
        return folder.write_model(tmp_path / "other", describe(), STATE, atlases).model_sha256

    moved = atlas(0)
    moved.metadata["labels"]["shape"][:] = [8, 6, 10]
    digests = {digest(), digest(atlas(0)), digest(atlas(1)), digest(atlas(0), atlas(1)), digest(moved)}
    assert len(digests) == 5
    assert folder.read_description(model).model_sha256 == digest(atlas(0), atlas(1))


def refused(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        folder.read_atlas_tensors(path)
    assert str(path) in caught.value.message
    assert "atlas" in caught.value.message
    return caught.value


def test_changed_atlas_is_refused_and_the_weights_are_still_read(model: Path, tmp_path: Path) -> None:
    content = bytearray((model / "atlas.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "atlas.safetensors").write_bytes(content)
    assert refused(model).code == "model_damaged"
    assert torch.equal(folder.read_model(model)[1]["weight"], STATE["weight"])
    with pytest.raises(InputError, match="atlases of the model"):
        folder.copy_model(model, tmp_path / "copy", keep_atlas=True)
    folder.copy_model(model, tmp_path / "copy")
    assert names(tmp_path / "copy") == ["model.json", "model.safetensors"]


def test_absent_atlas_is_refused(model: Path) -> None:
    (model / "atlas.safetensors").unlink()
    assert refused(model).code == "model_unusable"


def test_atlas_file_that_is_much_larger_than_its_description_is_not_read(model: Path) -> None:
    with (model / "atlas.safetensors").open("ab") as stream:
        stream.truncate(10**11)  # a sparse file
    assert refused(model).code == "model_damaged"


def replace_atlas(model: Path, content: bytes) -> None:
    (model / "atlas.safetensors").write_bytes(content)
    change_json(model, atlas_sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("keys", [["0.features"], ["0.features", "0.labels", "1.features", "1.labels", "1.image"]])
def test_atlas_file_with_other_tensors_is_refused(model: Path, keys: list[str]) -> None:
    replace_atlas(model, save({key: torch.zeros(1) for key in keys}))
    assert refused(model).code == "model_unusable"


def test_atlas_file_that_is_no_safetensors_is_refused(model: Path) -> None:
    replace_atlas(model, b"PK not safetensors")
    assert refused(model).code == "model_unusable"


def test_atlas_that_no_reader_would_accept_is_not_written(tmp_path: Path) -> None:
    wrong = StoredAtlas({**atlas().metadata, "modality": "pet"}, atlas().tensors)
    with pytest.raises(InputError, match=r"atlas\[0\]\.modality"):
        folder.write_model(tmp_path / "model", describe(), STATE, (wrong,))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("options", [[], ["--keep-atlas"]])
def test_copy_in_half_precision_keeps_the_atlas_if_asked_for(model: Path, tmp_path: Path, options: list[str]) -> None:
    assert main([str(model), str(tmp_path / "half"), "--half", *options]) == 0
    description, stored = folder.read_atlas_tensors(tmp_path / "half")
    assert len(stored) == (2 if options else 0)
    assert description.format_version == (2 if options else 1)
    assert folder.read_model(tmp_path / "half")[1]["weight"].dtype == torch.float16


def test_description_made_in_memory_has_no_atlas() -> None:
    plain: ModelDescription = describe()
    assert "atlas" not in plain.to_json()
    assert "atlas_sha256" not in plain.to_json()

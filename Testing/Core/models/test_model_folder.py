"""Model folders and zips: written whole, read back, copied, renamed, and found again after an interruption."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from model_files import UNETR_ARGUMENTS, describe

from HiEndMAECore.errors import InputError
from HiEndMAECore.io import atomic
from HiEndMAECore.models import folder, pretrained
from HiEndMAECore.networks import UNETR


@pytest.fixture
def network() -> UNETR:
    torch.manual_seed(0)
    return UNETR(**UNETR_ARGUMENTS)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def change_json(path: Path, **values: object) -> None:
    file = path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


@pytest.mark.parametrize("name", ["model", "my model ü", "model.zip"])
def test_written_model_is_read_back_and_leaves_no_other_file(tmp_path: Path, network: UNETR, name: str) -> None:
    path = tmp_path / "deep" / name
    folder.write_model(path, describe(), network.state_dict())
    description, weights = folder.read_model(path)
    assert description == folder.read_description(path)
    assert description.name == "Léber – test"
    assert [label["value"] for label in description.labels] == [2, 5]
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    assert names(path.parent) == [name]


def test_write_model_replaces_a_model_but_no_other_folder(tmp_path: Path, network: UNETR) -> None:
    path = tmp_path / "model"
    folder.write_model(path, describe(), network.state_dict())
    folder.write_model(path, describe(name="second"), network.state_dict())
    assert folder.read_description(path).name == "second"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="will not be overwritten"):
        folder.write_model(tmp_path / "thesis", describe(), network.state_dict())
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("changes", [{"channels": []}, {"labels": [{"value": 1, "name": ""}]}, {"name": "\ud800"}])
def test_write_model_with_a_description_that_cannot_be_read_again_writes_nothing(
    tmp_path: Path, network: UNETR, changes: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        folder.write_model(tmp_path / "model", describe(**changes), network.state_dict())
    assert caught.value.code == "model_unusable"
    assert names(tmp_path) == []


def test_copied_model_has_the_same_two_files(tmp_path: Path, network: UNETR) -> None:
    written = folder.write_model(tmp_path / "a", describe(), network.state_dict())
    change_json(tmp_path / "a", quality={"later": [1]})
    folder.copy_model(tmp_path / "a", tmp_path / "b.zip")
    folder.copy_model(tmp_path / "b.zip", tmp_path / "c")
    assert zipfile.ZipFile(tmp_path / "b.zip").namelist() == ["model.json", "model.safetensors"]
    assert folder.read_description(tmp_path / "c").weights_sha256 == written.weights_sha256
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


def test_renamed_and_rewritten_model_keeps_unknown_keys(tmp_path: Path, network: UNETR) -> None:
    path = tmp_path / "model"
    folder.write_model(path, describe(), network.state_dict())
    change_json(path, quality={"later": [1]}, training={"steps": 3, "later": True})
    weights = (path / "model.safetensors").read_bytes()
    renamed = folder.rename_model(path, "other")
    assert folder.read_description(path) == renamed
    assert (renamed.name, renamed.additional, renamed.training["later"]) == ("other", {"quality": {"later": [1]}}, True)
    assert (path / "model.safetensors").read_bytes() == weights
    folder.write_model(tmp_path / "again", renamed, network.state_dict())
    assert folder.read_description(tmp_path / "again").additional == {"quality": {"later": [1]}}


def test_model_digest_covers_what_decides_a_result(tmp_path: Path, network: UNETR) -> None:
    """It is the same in memory, in a folder and in a zip, and another one for each part that counts, but for no other."""
    written = folder.write_model(tmp_path / "a", describe(), network.state_dict())
    folder.copy_model(tmp_path / "a", tmp_path / "b.zip")
    assert written.model_sha256 == folder.read_description(tmp_path / "a").model_sha256
    assert written.model_sha256 == folder.read_description(tmp_path / "b.zip").model_sha256
    plain = describe()
    parts = {
        "architecture": plain.architecture, "channels": ["CT"], "labels": plain.labels, "mirroring": None,
        "preparation": plain.preparation, "weights_sha256": written.weights_sha256,
    }  # fmt: skip
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert written.model_sha256 == hashlib.sha256(text.encode("ascii")).hexdigest()
    assert describe(name="another", training={"steps": 4}, additional={"x": 1}).model_sha256 == plain.model_sha256
    others = [
        describe(architecture={**plain.architecture, "variant": "large"}),
        describe(channels=["MR"]),
        describe(preparation={**plain.preparation, "spacing": [4.0, 4.0, 5.0]}),
        describe(labels=[{**plain.labels[0], "value": 3}, plain.labels[1]]),
        describe(labels=[{**plain.labels[0], "name": "Leber"}, plain.labels[1]]),
        describe(training={"mirroring": {"allowed": True, "swaps": [], "reason": "wanted"}}),
        describe(weights_sha256="0" * 64),
    ]
    assert len({plain.model_sha256, *(other.model_sha256 for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format_version": 99}, "model_newer"),
        ({"format_version": "1"}, "model_unusable"),
        ({"kind": "soup"}, "model_unusable"),
        ({"labels": []}, "model_unusable"),
        ({"labels": [{"value": 1, "name": "a"}, {"value": 1, "name": "b"}]}, "model_unusable"),
        ({"channels": []}, "model_unusable"),
        ({"architecture": {}}, "model_unusable"),
        ({"preparation": {"spacing": [1, 1, 0], "normalisation": {}}}, "model_unusable"),
    ],
)
def test_unusable_description_is_refused_by_every_reader(
    tmp_path: Path, network: UNETR, change: dict[str, Any], code: str
) -> None:
    path = tmp_path / "model"
    folder.write_model(path, describe(), network.state_dict())
    change_json(path, **change)
    readers = (folder.read_description, folder.read_model, folder.read_weights)
    for read in (
        *readers,
        lambda path: folder.copy_model(path, tmp_path / "b.zip"),
        lambda path: folder.rename_model(path, "b"),
    ):
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.code == code
        assert str(path) in caught.value.message
    assert names(tmp_path) == ["model"]


def test_damaged_weights_are_refused(tmp_path: Path, network: UNETR) -> None:
    path = tmp_path / "model"
    description = folder.write_model(path, describe(), network.state_dict())
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    for read in (folder.read_weights, folder.read_model, lambda path: folder.read_weights(path, description)):
        with pytest.raises(InputError) as caught:
            read(path)
        assert caught.value.code == "model_damaged"
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read") as caught:
        folder.read_model(path)
    assert caught.value.code == "model_unusable"
    assert not folder.is_model(path)


def test_path_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("thesis.txt", "years of work")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "other.zip").read_bytes()[:-30] + b"PK\5\6" + b"\xff" * 18)
    for path in (tmp_path / "absent", tmp_path, *(tmp_path / name for name in ("note.txt", "other.zip", "cut.zip"))):
        assert not folder.is_model(path)
        with pytest.raises(InputError) as caught:
            folder.read_description(path)
        assert caught.value.code == "model_absent"


@pytest.fixture
def interrupted(tmp_path: Path, network: UNETR, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose replacement by "second" ended between the two renames, as when the process is killed."""
    path = tmp_path / "models" / "model"
    folder.write_model(path, describe(name="first"), network.state_dict())
    rename = os.replace

    def killed_at_the_second_rename(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", killed_at_the_second_rename)
        with pytest.raises(KeyboardInterrupt):
            folder.write_model(path, describe(name="second"), network.state_dict())
    assert names(path.parent) == [".model.old"]
    return path


@pytest.mark.parametrize(
    "read",
    [
        folder.read_description,
        folder.read_weights,
        folder.is_model,
        folder.check_output_free,
        pretrained.read_pretrained,
    ],
)
def test_model_of_an_interrupted_replacement_is_found_by_the_next_read(interrupted: Path, read: Any) -> None:
    assert read(str(interrupted) if read is pretrained.read_pretrained else interrupted) is not False
    assert names(interrupted.parent) == ["model"]
    assert folder.read_description(interrupted).name == "first"


def test_pretraining_run_of_an_interrupted_replacement_is_found(interrupted: Path) -> None:
    initial = pretrained.read_pretrained(str(interrupted.parent))
    assert initial is not None
    assert initial.source == "first"


def test_write_after_an_interrupted_replacement_leaves_the_new_model_alone(interrupted: Path, network: UNETR) -> None:
    folder.write_model(interrupted, describe(name="third"), network.state_dict())
    assert names(interrupted.parent) == ["model"]
    assert folder.read_description(interrupted).name == "third"


def replace_again_and_again(path: Path, times: int) -> None:
    for number in range(times):
        state = {"weight": torch.full((20_000,), float(number))}
        folder.write_model(path, describe(name=str(number)), state)


def test_model_that_is_replaced_while_it_is_read_has_the_weights_of_its_description(tmp_path: Path) -> None:
    path, seen = tmp_path / "model", set()
    replace_again_and_again(path, 1)
    writer = multiprocessing.get_context("spawn").Process(target=replace_again_and_again, args=(path, 60))
    writer.start()
    while writer.is_alive():
        description, weights = folder.read_model(path)
        assert weights["weight"][0] == float(description.name)
        seen.add(description.name)
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 1
    assert names(tmp_path) == ["model"]

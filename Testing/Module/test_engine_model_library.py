"""The model library: sharing, and models that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from module_help import BAD_VALUES, NAMES, add_model


def test_share_writes_one_zip_and_replaces_no_other_file(imported: Any, tmp_path: Path) -> None:
    from HiEndMAECore.errors import InputError

    library = imported.session.library
    (model,) = library.models()
    assert library.share(model, tmp_path / "M.ZIP").is_file()
    (tmp_path / "mine.zip").write_bytes(b"something else")
    for name in ("mine", "M.ZIP"):
        with pytest.raises(InputError, match="already"):
            library.share(model, tmp_path / name)
    assert (tmp_path / "mine.zip").read_bytes() == b"something else"
    assert library.share(model, tmp_path / "M.zip") == tmp_path / "M.zip"  # the dialog has asked


def test_import_keeps_the_atlas_and_share_leaves_it_out(module: Any, shared_model: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from HiEndMAECore.models import folder
    from HiEndMAECore.models.atlas_file import StoredAtlas

    grid = {"shape": [2, 2, 2], "affine": [[4, 0, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]]}
    features, labels = torch.zeros(13, 2, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, 2, dtype=torch.uint8)
    atlas = StoredAtlas({"modality": "ct", "features": grid, "labels": grid}, {"features": features, "labels": labels})
    folder.write_model(tmp_path / "sent.zip", *folder.read_model(shared_model), (atlas,))
    library = module.session.library
    model = library.import_model(tmp_path / "sent.zip")
    assert len(folder.read_atlas_tensors(model.path)[1]) == 1
    shared = library.share(model, tmp_path / "shared.zip")
    assert folder.read_atlas_tensors(shared)[1] == ()
    whole = library.share(model, tmp_path / "whole.zip", keep_atlas=True)
    assert len(folder.read_atlas_tensors(whole)[1]) == 1


@pytest.mark.parametrize(("path", "value"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_model_with_a_bad_description_is_listed_as_unreadable(
    path: str, value: Any, module: Any, shared_model: Path
) -> None:
    library = module.session.library
    folder = add_model(library, shared_model, "bad", path, value)
    assert library.models() == []
    (unreadable,) = library.unreadable_models()
    assert (unreadable.key, unreadable.path) == ("bad", folder)
    assert str(folder) in unreadable.reason
    library.delete(unreadable)
    assert library.unreadable_models() == []


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"kind": NaN}', "[" * 100_000])
def test_model_whose_description_is_no_json_object_is_listed_as_unreadable(
    text: str, module: Any, shared_model: Path
) -> None:
    folder = add_model(module.session.library, shared_model, "bad", "name", "x")
    (folder / "model.json").write_text(text, encoding="utf-8")
    assert [model.key for model in module.session.library.unreadable_models()] == ["bad"]


def test_model_without_weights_is_listed_as_unreadable(module: Any, shared_model: Path) -> None:
    folder = add_model(module.session.library, shared_model, "bad", "name", "x")
    (folder / "model.safetensors").unlink()
    (unreadable,) = module.session.library.unreadable_models()
    assert "model.safetensors is missing" in unreadable.reason


def test_folders_that_are_no_models_are_not_listed(module: Any) -> None:
    """A model in training has an empty folder, and a second one with its training checkpoint."""
    library = module.session.library
    for name in ("in-training", "in-training.training", ".hidden"):
        (library.folder / name).mkdir(parents=True)
    (library.folder / "in-training.training" / "snapshot.safetensors").write_bytes(b"a checkpoint")
    assert (library.models(), library.unreadable_models()) == ([], [])


def test_optional_parts_of_a_description_may_be_absent(module: Any, shared_model: Path) -> None:
    labels = [{"value": value, "name": name} for value, name in NAMES.items()]
    add_model(module.session.library, shared_model, "plain", "labels", labels)
    assert [model.key for model in module.session.library.models()] == ["plain"]


def test_import_of_a_model_with_a_bad_description_is_refused(module: Any, shared_model: Path, tmp_path: Path) -> None:
    from HiEndMAECore.errors import InputError

    library = module.session.library
    folder = add_model(library, shared_model, "bad", "labels[0].colour", "red")
    folder.rename(tmp_path / "bad")
    with pytest.raises(InputError, match=r"'labels\[0\]\.colour' is 'red', must be three whole numbers"):
        library.import_model(tmp_path / "bad")
    assert list(library.folder.iterdir()) == []

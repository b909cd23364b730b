"""Conversion of the authors' checkpoints to model folders and back; files that are no such checkpoint are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.models import catalogue, folder, pretrained
from HiEndMAECore.models.authors import read_authors_checkpoint, write_authors_checkpoint
from HiEndMAECore.models.conversion import PAPER_PREPROCESSING, main
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.networks import HiEndMAE, build_pretraining_model
from HiEndMAECore.networks.variants import pretraining_arguments


@pytest.fixture(scope="module")
def model() -> HiEndMAE:
    torch.manual_seed(0)
    return build_pretraining_model("hi_end_mae_vit_tiny_8p", image_size=(16, 16, 16), cross_stages=3)


@pytest.fixture
def checkpoint(model: HiEndMAE, tmp_path: Path) -> dict[str, Any]:
    """A training checkpoint as the released code writes it."""
    write_authors_checkpoint(tmp_path / "written.pth", model)
    state = torch.load(tmp_path / "written.pth", weights_only=True)["state_dict"]
    return {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}, "scaler": {"scale": 2.0}}


def test_checkpoint_converted_to_a_folder_and_back_has_the_same_bits(
    checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(checkpoint, tmp_path / "authors.pth")
    assert main([str(tmp_path / "authors.pth"), str(tmp_path / "folder")]) == 0
    assert folder.read_description(tmp_path / "folder").architecture["variant"] == "hi_end_mae_vit_tiny_8p"
    assert main([str(tmp_path / "folder"), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert set(back) == set(checkpoint["state_dict"])
    assert "module.encoder_pos_embed" in back
    assert all(torch.equal(back[key], value) for key, value in checkpoint["state_dict"].items())
    assert pretrained.read_pretrained(str(tmp_path / "folder")) is not None


@pytest.mark.parametrize("wrapped", [True, False])
def test_checkpoint_of_a_bare_state_dict_is_converted(
    checkpoint: dict[str, Any], tmp_path: Path, wrapped: bool
) -> None:
    state = {key if wrapped else key.removeprefix("module."): v for key, v in checkpoint["state_dict"].items()}
    torch.save(state, tmp_path / "bare.pth")
    assert set(read_authors_checkpoint(tmp_path / "bare.pth")) == {
        k.removeprefix("module.") for k in checkpoint["state_dict"]
    }
    assert main([str(tmp_path / "bare.pth"), str(tmp_path / "folder")]) == 0


def test_file_that_does_not_fit_is_listed_and_nothing_is_written(
    checkpoint: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(checkpoint["state_dict"])
    del state["module.decoder.norm.bias"]
    state["module.decoder.blocks.1.attn.proj.bias"] = torch.zeros(5)
    state["module.vit.something"] = torch.zeros(1)
    finetuned = {"vit.norm.weight": torch.zeros(3), "decoder5.conv.weight": torch.zeros(3)}
    whole = tmp_path / "whole.pth"
    torch.save(checkpoint, whole)
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files = {
        "partial.pth": (
            {"state_dict": state},
            ("decoder.norm.bias", "decoder.blocks.1.attn.proj.bias", "vit.something"),
        ),
        "finetuned.pth": ({"state_dict": finetuned}, ("no Hi-End-MAE weights",)),
        "optimizer.pth": ({"optimizer": checkpoint["optimizer"]}, ("no state dict",)),
        "cut.pth": (None, ("cannot be read",)),
        "absent.pth": (None, ("There is no file",)),
    }
    for name, (content, parts) in files.items():
        if content is not None:
            torch.save(content, tmp_path / name)
        assert main([str(tmp_path / name), str(tmp_path / "out")]) == 3, name
        message = capsys.readouterr().err
        assert all(part in message for part in parts), message
        assert not (tmp_path / "out").exists()


def test_conversion_to_an_existing_path_or_the_same_kind_is_refused(tmp_path: Path, model: HiEndMAE) -> None:
    write_authors_checkpoint(tmp_path / "authors.pth", model)
    (tmp_path / "existing").mkdir()
    assert main([str(tmp_path / "authors.pth"), str(tmp_path / "existing")]) == 3
    assert main([str(tmp_path / "authors.pth"), str(tmp_path / "other.pth")]) == 3


def test_model_that_the_authors_code_would_compute_differently_is_not_converted(tmp_path: Path, capsys: Any) -> None:
    """No shape depends on the number of heads: the 16 of Table S3 would be computed as the 12 of the released code."""
    network = build_pretraining_model("hi_end_mae_vit_base_paper_16p", image_size=(32, 32, 32))
    arguments = pretraining_arguments("hi_end_mae_vit_base_paper_16p", image_size=(32, 32, 32))
    description = ModelDescription(
        kind="pretraining", name="x", channels=["CT"], preparation=PAPER_PREPROCESSING, training={},
        architecture={"network": "HiEndMAE", "variant": "hi_end_mae_vit_base_paper_16p", "arguments": arguments},
    )  # fmt: skip
    folder.write_model(tmp_path / "folder", description, network.state_dict())
    assert main([str(tmp_path / "folder"), str(tmp_path / "authors.pth")]) == 3
    assert "16 attention heads" in capsys.readouterr().err
    assert not (tmp_path / "authors.pth").exists()


def test_copy_in_half_precision_initializes_the_same_encoder(tmp_path: Path, model: HiEndMAE) -> None:
    write_authors_checkpoint(tmp_path / "authors.pth", model)
    assert main([str(tmp_path / "authors.pth"), str(tmp_path / "whole")]) == 0
    assert main([str(tmp_path / "whole"), str(tmp_path / "half")]) == 3  # a loss of precision must be asked for
    assert main([str(tmp_path / "whole"), str(tmp_path / "half"), "--half"]) == 0
    whole, half = (pretrained.read_pretrained(str(tmp_path / name)) for name in ("whole", "half"))
    assert whole is not None
    assert half is not None
    assert half.source == "half"
    assert half.description is not None
    assert half.description.preparation == whole.description.preparation  # type: ignore[union-attr]
    sizes = [(tmp_path / name / folder.WEIGHTS).stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.51 * sizes[1]
    for name, value in whole.encoder.items():
        torch.testing.assert_close(half.encoder[name].float(), value, atol=1e-3, rtol=1e-3)


def test_published_file_is_checked_by_its_hash(
    tmp_path: Path, model: HiEndMAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash of the published file is not in the catalogue yet, so the test puts one there."""
    entry = catalogue.find_entry("hi-end-mae-10k")
    path = tmp_path / entry.file_name
    write_authors_checkpoint(path, model)
    found = pretrained.read_pretrained(str(path))
    assert found is not None
    for sha256, fine in ((found.sha256, True), ("0" * 64, False)):
        monkeypatch.setattr(catalogue, "CATALOGUE", (replace(entry, sha256=sha256),))
        if fine:
            assert pretrained.read_pretrained(str(path)) is not None
            continue
        with pytest.raises(InputError, match="not the file that its authors published"):
            pretrained.read_pretrained(str(path))

"""The authors' checkpoints: to a model folder and back, and every file that is none refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.models import catalogue, folder, pretrained
from HiEndMAECore.models.authors import read_authors_checkpoint, write_authors_checkpoint
from HiEndMAECore.models.conversion import _PAPER, main
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.networks import HiEndMAE, build_pretraining_model
from HiEndMAECore.networks.variants import pretraining_arguments


@pytest.fixture(scope="module")
def model() -> HiEndMAE:
    torch.manual_seed(0)
    return build_pretraining_model("hi_end_mae_vit_tiny_8p", image_size=(16, 16, 16), cross_stages=3)


@pytest.fixture
def checkpoint(model: HiEndMAE, tmp_path: Path) -> dict[str, Any]:
    """A training snapshot as the released code writes it."""
    write_authors_checkpoint(tmp_path / "written.pth", model)
    state = torch.load(tmp_path / "written.pth", weights_only=True)["state_dict"]
    return {"epoch": 3, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}, "scaler": {"scale": 2.0}}


def test_there_and_back_bit_by_bit(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "theirs.pth")
    assert main([str(tmp_path / "theirs.pth"), str(tmp_path / "ours")]) == 0
    assert folder.read_description(tmp_path / "ours").architecture["variant"] == "hi_end_mae_vit_tiny_8p"
    assert main([str(tmp_path / "ours"), str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert set(back) == set(checkpoint["state_dict"])
    assert "module.encoder_pos_embed" in back
    assert all(torch.equal(back[key], value) for key, value in checkpoint["state_dict"].items())
    assert pretrained.read_pretrained(str(tmp_path / "ours")) is not None


@pytest.mark.parametrize("wrapped", [True, False])
def test_bare_weights_are_read_as_well(checkpoint: dict[str, Any], tmp_path: Path, wrapped: bool) -> None:
    state = {key if wrapped else key.removeprefix("module."): v for key, v in checkpoint["state_dict"].items()}
    torch.save(state, tmp_path / "bare.pth")
    assert set(read_authors_checkpoint(tmp_path / "bare.pth")) == {
        k.removeprefix("module.") for k in checkpoint["state_dict"]
    }
    assert main([str(tmp_path / "bare.pth"), str(tmp_path / "ours")]) == 0


def test_what_does_not_fit_is_listed_and_nothing_is_written(
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
        "optimiser.pth": ({"optimizer": checkpoint["optimizer"]}, ("no state dict",)),
        "cut.pth": (None, ("cannot be read",)),
        "absent.pth": (None, ("There is no file",)),
    }
    for name, (content, told) in files.items():
        if content is not None:
            torch.save(content, tmp_path / name)
        assert main([str(tmp_path / name), str(tmp_path / "out")]) == 3, name
        said = capsys.readouterr().err
        assert all(part in said for part in told), said
        assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_kinds_are_told_apart(tmp_path: Path, model: HiEndMAE) -> None:
    write_authors_checkpoint(tmp_path / "theirs.pth", model)
    (tmp_path / "there").mkdir()
    assert main([str(tmp_path / "theirs.pth"), str(tmp_path / "there")]) == 3
    assert main([str(tmp_path / "theirs.pth"), str(tmp_path / "other.pth")]) == 3


def test_what_their_code_would_read_as_another_network_stays_ours(tmp_path: Path, capsys: Any) -> None:
    """Heads are in no tensor's shape: Table S3's 16 would be computed as the released code's 12."""
    network = build_pretraining_model("hi_end_mae_vit_base_paper_16p", image_size=(32, 32, 32))
    arguments = pretraining_arguments("hi_end_mae_vit_base_paper_16p", image_size=(32, 32, 32))
    description = ModelDescription(
        kind="pretraining", name="x", channels=["CT"], preparation=_PAPER, training={},
        architecture={"network": "HiEndMAE", "variant": "hi_end_mae_vit_base_paper_16p", "arguments": arguments},
    )  # fmt: skip
    folder.write_model(tmp_path / "ours", description, network.state_dict())
    assert main([str(tmp_path / "ours"), str(tmp_path / "theirs.pth")]) == 3
    assert "16 attention heads" in capsys.readouterr().err
    assert not (tmp_path / "theirs.pth").exists()


def test_a_copy_in_16_bits_starts_the_same_encoder(tmp_path: Path, model: HiEndMAE) -> None:
    write_authors_checkpoint(tmp_path / "theirs.pth", model)
    assert main([str(tmp_path / "theirs.pth"), str(tmp_path / "whole")]) == 0
    assert main([str(tmp_path / "whole"), str(tmp_path / "half")]) == 3  # 16 bits lose something: it must be said
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


def test_a_known_file_is_checked_by_its_hash(tmp_path: Path, model: HiEndMAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published file's hash is not known yet: the entry here says what one would do."""
    theirs = catalogue.find_entry("hi-end-mae-10k")
    path = tmp_path / theirs.file_name
    write_authors_checkpoint(path, model)
    found = pretrained.read_pretrained(str(path))
    assert found is not None
    for known, fine in ((found.sha256, True), ("0" * 64, False)):
        monkeypatch.setattr(catalogue, "CATALOGUE", (replace(theirs, sha256=known),))
        if fine:
            assert pretrained.read_pretrained(str(path)) is not None
            continue
        with pytest.raises(InputError, match="not the file that its authors published"):
            pretrained.read_pretrained(str(path))

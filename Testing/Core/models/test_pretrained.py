"""Initial weights: what `--init` accepts, and how it is transferred to a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_files import UNETR_ARGUMENTS, describe

from HiEndMAECore.errors import InputError
from HiEndMAECore.models import folder, pretrained
from HiEndMAECore.networks import UNETR, HiEndMAE, build_pretraining_model
from HiEndMAECore.networks.variants import pretraining_arguments


@pytest.fixture
def network() -> UNETR:
    torch.manual_seed(0)
    return UNETR(**UNETR_ARGUMENTS)


@pytest.fixture
def tiny() -> tuple[HiEndMAE, dict]:
    torch.manual_seed(1)
    model = build_pretraining_model("hi_end_mae_vit_tiny_8p", image_size=(16, 16, 16))
    state = {"module." + key: value.clone() for key, value in model.state_dict().items()}
    state["module.encoder_pos_embed"] = model.encoder.position_embedding[None]
    return model, state


def test_authors_file_initializes_the_encoder_of_unetr(tmp_path: Path, tiny: tuple[HiEndMAE, dict]) -> None:
    model, state = tiny
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "weights.pth")
    initial = pretrained.read_pretrained(str(tmp_path / "weights.pth"))
    assert initial is not None
    assert initial.variant == "hi_end_mae_vit_tiny_8p"
    network = UNETR(**{**UNETR_ARGUMENTS, "image_size": (24, 24, 24), "patch_size": 8, "encoder_dim": 192, "encoder_depth": 12,
                       "encoder_heads": 3, "in_channels": 2})  # fmt: skip
    record = pretrained.load_pretrained(network, initial)
    assert len(record["init_sha256"]) == 64
    torch.testing.assert_close(
        network.encoder.patch_embed.proj.weight[:, 1:], model.encoder.patch_embed.proj.weight / 2
    )
    assert torch.equal(network.encoder.blocks[5].mlp.fc1.weight, model.encoder.blocks[5].mlp.fc1.weight)


@pytest.mark.parametrize(("init", "code"), [("nowhere", "init_unknown"), ("hi-end-mae-10k", "init_not_at_hand")])
def test_unknown_initial_weights_list_the_known_ones(init: str, code: str) -> None:
    with pytest.raises(InputError) as caught:
        pretrained.read_pretrained(init)
    assert caught.value.code == code
    assert "hi" in caught.value.advice


def test_initial_weights_none_are_none() -> None:
    assert pretrained.read_pretrained("none") is None


def test_pretraining_run_is_read_as_initial_weights(tmp_path: Path, tiny: tuple[HiEndMAE, dict]) -> None:
    arguments = pretraining_arguments("hi_end_mae_vit_tiny_8p", image_size=(16, 16, 16))
    architecture = {"network": "HiEndMAE", "variant": "hi_end_mae_vit_tiny_8p", "arguments": arguments}
    description = describe(kind="pretraining", labels=[], architecture=architecture)
    folder.write_model(tmp_path / "run" / "model", description, tiny[0].state_dict())
    initial = pretrained.read_pretrained(str(tmp_path / "run"))
    assert initial is not None
    assert not initial.is_segmentation
    assert set(initial.encoder) == set(tiny[0].encoder.state_dict())


def test_segmentation_model_initializes_all_but_the_head_of_other_structures(tmp_path: Path, network: UNETR) -> None:
    folder.write_model(tmp_path / "model", describe(), network.state_dict())
    initial = pretrained.read_pretrained(str(tmp_path / "model"))
    other = UNETR(**{**UNETR_ARGUMENTS, "classes": 5})
    pretrained.load_pretrained(other, initial)
    assert torch.equal(other.merge_image.up.weight, network.merge_image.up.weight)
    assert other.out.conv.conv.weight.shape[0] == 5


def test_inflation_of_two_channels_to_three_is_refused() -> None:
    with pytest.raises(InputError, match="trained on 2 channels, the scans have 3"):
        pretrained.inflate_input_weight(torch.zeros(4, 2, 2, 2, 2), 3)

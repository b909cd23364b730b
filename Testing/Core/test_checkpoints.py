"""Model folders, the authors' files, and the transfer rule."""

from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.models import authors, folder, pretrained
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.networks import UNETR, HiEndMAE, build_pretraining_model
from HiEndMAECore.networks.variants import pretraining_arguments

PARITY = Path(__file__).parent / "parity"
SIZES = {
    "image_size": (8, 8, 8),
    "patch_size": 4,
    "in_channels": 1,
    "encoder_dim": 24,
    "encoder_depth": 4,
    "encoder_heads": 2,
}
UNETR_SIZES = {**SIZES, "classes": 3, "feature_size": 4}


def describe(**changes: object) -> ModelDescription:
    values: dict = {
        "kind": "segmentation",
        "name": "Léber – test",
        "architecture": {"network": "UNETR", "variant": "", "arguments": UNETR_SIZES},
        "channels": ["CT"],
        "preparation": {
            "spacing": [4.0, 4.0, 4.0],
            "normalisation": {"kind": "window", "low": -175.0, "high": 250.0},
            "orientation": "RAS",
        },
        "labels": [{"value": 2, "name": "liver", "colour": [1, 2, 3]}, {"value": 5, "name": "spleen"}],
        "training": {"steps": 3},
    }
    return ModelDescription(**{**values, **changes})


@pytest.fixture
def network() -> UNETR:
    torch.manual_seed(0)
    return UNETR(**UNETR_SIZES)


@pytest.mark.parametrize("name", ["model", "my model ü", "model.zip"])
def test_round_trip(tmp_path: Path, network: UNETR, name: str) -> None:
    path = tmp_path / "deep" / name
    folder.write_model(path, describe(), network.state_dict())
    read = folder.read_description(path)
    assert read.name == "Léber – test"
    assert [label["value"] for label in read.labels] == [2, 5]
    weights = folder.read_weights(path)
    assert all(torch.equal(weights[key], value) for key, value in network.state_dict().items())
    assert [entry.name for entry in path.parent.iterdir()] == [name]  # nothing else is left there


def test_a_model_is_replaced_whole_and_nothing_else_is_overwritten(tmp_path: Path, network: UNETR) -> None:
    path = tmp_path / "model"
    folder.write_model(path, describe(), network.state_dict())
    folder.write_model(path, describe(name="second"), network.state_dict())
    assert folder.read_description(path).name == "second"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(InputError, match="will not be overwritten"):
        folder.write_model(tmp_path / "thesis", describe(), network.state_dict())
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_folder_to_zip_and_back(tmp_path: Path, network: UNETR) -> None:
    written = folder.write_model(tmp_path / "a", describe(), network.state_dict())
    folder.copy_model(tmp_path / "a", tmp_path / "b.zip")
    folder.copy_model(tmp_path / "b.zip", tmp_path / "c")
    assert zipfile.ZipFile(tmp_path / "b.zip").namelist() == ["model.json", "model.safetensors"]
    assert folder.read_description(tmp_path / "c").weights_sha256 == written.weights_sha256
    assert (tmp_path / "c" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()


def test_a_digest_names_what_decides_a_result(tmp_path: Path, network: UNETR) -> None:
    """The same in memory, in a folder and in a zip; another one for each part that counts, and for no other."""
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
    assert describe(name="another", training={"steps": 4}).model_sha256 == plain.model_sha256
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
def test_a_description_that_cannot_be_used_is_refused(tmp_path: Path, network: UNETR, change: dict, code: str) -> None:
    path = tmp_path / "model"
    folder.write_model(path, describe(), network.state_dict())
    data = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(InputError) as caught:
        folder.read_description(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message


def test_damaged_weights_are_refused(tmp_path: Path, network: UNETR) -> None:
    path = tmp_path / "model"
    folder.write_model(path, describe(), network.state_dict())
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError) as caught:
        folder.read_weights(path)
    assert caught.value.code == "model_damaged"


def test_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "note.txt"):
        with pytest.raises(InputError) as caught:
            folder.read_description(path)
        assert caught.value.code == "model_absent"


@pytest.mark.parametrize("name", ["base_16p", "large_16p", "large_12p"])
def test_pretraining_state_dict_has_the_authors_layout(name: str) -> None:
    known = {key: tuple(shape) for key, shape in json.loads((PARITY / f"state_dict_{name}.json").read_text()).items()}
    assert len(known) == 248
    with torch.device("meta"):
        model = build_pretraining_model(f"hi_end_mae_vit_{name}")
    built = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    tables = {"encoder_pos_embed", "decoder_pos_embed"}
    assert {key: shape for key, shape in known.items() if key not in tables} == built


@pytest.fixture
def tiny() -> tuple[HiEndMAE, dict]:
    torch.manual_seed(1)
    model = build_pretraining_model("hi_end_mae_vit_tiny_8p", image_size=(16, 16, 16))
    state = {"module." + key: value.clone() for key, value in model.state_dict().items()}
    state["module.encoder_pos_embed"] = model.encoder.positions[None]
    return model, state


def test_authors_file_initializes_the_encoder_of_unetr(tmp_path: Path, tiny: tuple[HiEndMAE, dict]) -> None:
    model, state = tiny
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "weights.pth")
    initial = pretrained.read_pretrained(str(tmp_path / "weights.pth"))
    assert initial is not None
    assert initial.variant == "hi_end_mae_vit_tiny_8p"
    network = UNETR(**{**UNETR_SIZES, "image_size": (24, 24, 24), "patch_size": 8, "encoder_dim": 192, "encoder_depth": 12,
                       "encoder_heads": 3, "in_channels": 2})  # fmt: skip
    record = pretrained.load_pretrained(network, initial)
    assert len(record["init_sha256"]) == 64
    torch.testing.assert_close(
        network.encoder.patch_embed.proj.weight[:, 1:], model.encoder.patch_embed.proj.weight / 2
    )
    assert torch.equal(network.encoder.blocks[5].mlp.fc1.weight, model.encoder.blocks[5].mlp.fc1.weight)


def test_weights_that_do_not_fit_list_every_difference(tiny: tuple[HiEndMAE, dict]) -> None:
    model, state = tiny
    authors.load_pretraining_state(model, state)
    broken = dict(state)
    del broken["module.mask_token"]
    broken["module.extra"] = torch.zeros(1)
    broken["module.encoder.norm.bias"] = torch.zeros(7)
    with pytest.raises(InputError) as caught:
        authors.load_pretraining_state(model, broken)
    for part in ("missing: mask_token", "unknown: extra", "encoder.norm.bias is (7,) instead of (192,)"):
        assert part in caught.value.message
    with pytest.raises(InputError) as caught:
        authors.load_pretraining_state(model, {**state, "module.encoder_pos_embed": torch.zeros(1, 8, 192)})
    assert caught.value.code == "weights_positions"


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    torch.save({"state_dict": Bomb()}, tmp_path / "zipped.pth")
    for name in ("weights.pth", "zipped.pth"):
        with pytest.raises(InputError) as caught:
            pretrained.read_pretrained(str(tmp_path / name))
        assert caught.value.code == "weights_unreadable"
    assert not (tmp_path / "exploded").exists()


def test_pickle_is_refused_by_old_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple) -> None:
    torch.save({"state_dict": tiny[1]}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")  # an older torch cannot be had beside this one
    with pytest.raises(InputError) as caught:
        pretrained.read_pretrained(str(tmp_path / "weights.pth"))
    assert caught.value.code == "torch_unsafe"


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
    description = describe(
        kind="pretraining", labels=[], architecture={"variant": "hi_end_mae_vit_tiny_8p", "arguments": arguments}
    )
    folder.write_model(tmp_path / "run" / "model", description, tiny[0].state_dict())
    initial = pretrained.read_pretrained(str(tmp_path / "run"))
    assert initial is not None
    assert not initial.is_segmentation
    assert set(initial.encoder) == set(tiny[0].encoder.state_dict())


def test_segmentation_model_initializes_all_but_the_head_of_other_structures(tmp_path: Path, network: UNETR) -> None:
    folder.write_model(tmp_path / "model", describe(), network.state_dict())
    initial = pretrained.read_pretrained(str(tmp_path / "model"))
    other = UNETR(**{**UNETR_SIZES, "classes": 5})
    pretrained.load_pretrained(other, initial)
    assert torch.equal(other.merge_image.up.weight, network.merge_image.up.weight)
    assert other.out.conv.conv.weight.shape[0] == 5


def test_inflation_of_two_channels_to_three_is_refused() -> None:
    with pytest.raises(InputError, match="trained on 2 channels, the scans have 3"):
        pretrained.inflate_input_weight(torch.zeros(4, 2, 2, 2, 2), 3)

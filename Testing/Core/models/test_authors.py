"""The authors' checkpoints: the names of their weights, and files that cannot be read safely or do not fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.models.authors import (
    infer_variant,
    load_pretraining_state,
    read_authors_checkpoint,
    write_authors_checkpoint,
)
from HiEndMAECore.networks import HiEndMAE, build_pretraining_model

PARITY = Path(__file__).parents[1] / "parity"


@pytest.fixture
def tiny() -> tuple[HiEndMAE, dict[str, torch.Tensor]]:
    """A pretraining model, and its weights with the authors' names."""
    torch.manual_seed(1)
    model = build_pretraining_model("hi_end_mae_vit_tiny_8p", image_size=(16, 16, 16))
    state = {"module." + key: value.clone() for key, value in model.state_dict().items()}
    state["module.encoder_pos_embed"] = model.encoder.position_embedding[None]
    return model, state


@pytest.mark.parametrize("name", ["base_16p", "large_16p", "large_12p"])
def test_pretraining_model_has_the_names_and_shapes_of_the_authors_release(name: str) -> None:
    released = {
        key: tuple(shape) for key, shape in json.loads((PARITY / f"state_dict_{name}.json").read_text()).items()
    }
    assert len(released) == 248
    with torch.device("meta"):
        model = build_pretraining_model(f"hi_end_mae_vit_{name}")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    position_embeddings = {"encoder_pos_embed", "decoder_pos_embed"}
    assert {key: shape for key, shape in released.items() if key not in position_embeddings} == shapes


def test_load_of_weights_that_do_not_fit_names_each_of_them(tiny: tuple[HiEndMAE, dict[str, torch.Tensor]]) -> None:
    model, state = tiny
    load_pretraining_state(model, state)
    broken = dict(state)
    del broken["module.mask_token"]
    broken["module.extra"] = torch.zeros(1)
    broken["module.encoder.norm.bias"] = torch.zeros(7)
    with pytest.raises(InputError) as caught:
        load_pretraining_state(model, broken)
    for part in ("missing: mask_token", "unknown: extra", "encoder.norm.bias is (7,) instead of (192,)"):
        assert part in caught.value.message
    with pytest.raises(InputError) as caught:
        load_pretraining_state(model, {**state, "module.encoder_pos_embed": torch.zeros(1, 8, 192)})
    assert caught.value.code == "weights_positions"


def test_variants_of_equal_shapes_are_read_as_that_of_the_released_code() -> None:
    with torch.device("meta"):
        state = build_pretraining_model("hi_end_mae_vit_base_paper_16p").state_dict()
    assert infer_variant(state).name == "hi_end_mae_vit_base_16p"


def test_pickle_that_runs_code_is_refused_without_running_it(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"state_dict": Bomb()}, protocol=2))
    torch.save({"state_dict": Bomb()}, tmp_path / "zipped.pth")
    for name in ("weights.pth", "zipped.pth"):
        with pytest.raises(InputError) as caught:
            read_authors_checkpoint(tmp_path / name)
        assert caught.value.code == "weights_unreadable"
    assert not (tmp_path / "exploded").exists()


def test_torch_older_than_2_6_reads_no_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[HiEndMAE, dict[str, torch.Tensor]]
) -> None:
    torch.save({"state_dict": tiny[1]}, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")  # an older torch cannot be installed beside this one
    with pytest.raises(InputError) as caught:
        read_authors_checkpoint(tmp_path / "weights.pth")
    assert caught.value.code == "torch_unsafe"


def test_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: tuple[HiEndMAE, dict[str, torch.Tensor]]
) -> None:
    path = tmp_path / "weights.pth"
    write_authors_checkpoint(path, tiny[0])
    content = path.read_bytes()

    def fail_half_way(_: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(OSError, match="full"):
        write_authors_checkpoint(path, tiny[0])
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]

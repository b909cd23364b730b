"""The faults of the authors' release, by their numbers in the specification (section 6): none of them may be here.

Faults that are no more than another program's crash (2, 13, 14, 17: names that do not exist, imports that fail) are covered
by the tests of the doors, which run them; 4, 8, 15 and 16 have their tests beside the code and are repeated where it is cheap.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from HiEndMAECore import evaluate, finetune, prepare, pretrain, segment
from HiEndMAECore.checkpoints.official import read_authors_file
from HiEndMAECore.checkpoints.transfer import transfer_encoder
from HiEndMAECore.configuration import DoorConfig
from HiEndMAECore.errors import UsageError
from HiEndMAECore.networks import (
    HiEndMAE,
    build_pretraining_model,
    build_segmentation,
    list_variants,
    segmentation_architecture,
)
from HiEndMAECore.networks.encoder import visible_count
from HiEndMAECore.networks.registry import pretraining_arguments
from HiEndMAECore.training.distribution import Processes
from HiEndMAECore.training.optimiser import build_adamw, cosine_rate, spare_norms_and_biases
from HiEndMAECore.training.pretraining import PretrainingPlan
from HiEndMAECore.training.sampling import CROPS_A_LAP, Sampler
from HiEndMAECore.training.snapshots import newest_snapshot
from HiEndMAECore.volumes import crop_store
from HiEndMAECore.volumes.crop_store import CropStore

ENGINE = Path(pretrain.__file__).parent
TINY = "hi_end_mae_vit_tiny_8p"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = [rng.random((1, 40, 44, depth), dtype=np.float32) for depth in (36, 12)]
    scans = [crop_store.add_scan(tmp_path / "store", f"scan{index}", array) for index, array in enumerate(arrays)]
    preparation = {"spacing": [3, 3, 3], "normalisation": {"kind": "window", "low": -175, "high": 250}}
    crop_store.write_manifest(tmp_path / "store", {"scans": scans, "channels": 1, "preparation": preparation})
    return tmp_path / "store"


def config(store: Path, output: Path, **options: object) -> pretrain.PretrainConfig:
    given = {"variant": TINY, "crop": (16, 16, 16), "steps": 3, "batch_size": 2, "device": "cpu", **options}
    return pretrain.PretrainConfig(data=store, output=output, **given)  # type: ignore[arg-type]


def test_1_the_default_variant_exists() -> None:
    variant = pretrain.PretrainConfig(data=Path("a"), output=Path("b")).variant
    assert variant in list_variants()
    with torch.device("meta"):
        assert isinstance(build_pretraining_model(variant), HiEndMAE)


def test_3_and_12_a_run_saves_into_new_folders_resumes_and_prints_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a" / "b" / "c"
    pretrain.run(config(store, output))
    kept = newest_snapshot(output, on_damage=lambda error: pytest.fail(str(error)))
    assert kept is not None
    assert kept.name == "step-00000003.safetensors"
    with pytest.raises(UsageError):
        pretrain.run(config(store, output))  # not over an old run by accident
    pretrain.run(config(store, output, resume=True))
    assert capsys.readouterr().out == ""


def test_4_weight_decay_that_is_asked_for_is_applied() -> None:
    model = build_pretraining_model(TINY, image_size=(16, 16, 16))
    groups = spare_norms_and_biases(model, 0.05)
    optimiser = build_adamw(groups, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.05, 0.0]
    norm = model.encoder.norm.weight
    norm.grad = torch.zeros_like(norm)
    before = norm.detach().clone()
    optimiser.step()
    assert torch.equal(norm, before)


def test_5_crops_differ_from_lap_to_lap(store: Path) -> None:
    sampler = Sampler(CropStore.open(store), (16, 16, 16), 8, seed=0)
    crops = [sampler.draw(index).volume.numpy().tobytes() for index in range(3 * CROPS_A_LAP * 2)]
    assert len(set(crops)) > 0.9 * len(crops)  # a corner may come twice; the fault gives a third


def test_6_processes_draw_different_crops_and_masks(store: Path) -> None:
    sampler = Sampler(CropStore.open(store), (16, 16, 16), 8, seed=0)
    shares = [Processes(rank, 2).share(range(8, 16)) for rank in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == list(range(8, 16))
    masks = [sampler.draw(index).permutation.tolist() for share in shares for index in share]
    assert len({str(mask) for mask in masks}) == len(masks)


def test_7_the_patch_is_the_variants_and_the_crop_is_free(store: Path, tmp_path: Path) -> None:
    for variant in list_variants():
        assert pretraining_arguments(variant)["patch_size"] == int(re.findall(r"(\d+)p$", variant)[0])
    pretrain.run(config(store, tmp_path / "box", crop=(16, 24, 8)))
    with pytest.raises(UsageError, match="not divisible"):
        pretrain.run(config(store, tmp_path / "odd", crop=(16, 16, 15)))


@pytest.mark.parametrize(("patches", "ratio", "visible"), [(1000, 0.9, 100), (1000, 0.8, 200), (512, 0.75, 128)])
def test_9_patches_are_counted_exactly(patches: int, ratio: float, visible: int) -> None:
    assert visible_count(patches, ratio) == visible
    with pytest.raises(ValueError, match="one masked"):
        visible_count(patches, 0.0)


def test_10_checkpoints_are_read_by_todays_torch(tmp_path: Path) -> None:
    state = {"module.mask_token": torch.zeros(1, 1, 4)}
    torch.save({"epoch": 1, "state_dict": state, "optimizer": {}, "scaler": {}}, tmp_path / "weights.pth")
    assert set(read_authors_file(tmp_path / "weights.pth")) == {"mask_token"}


def test_11_a_scan_smaller_than_the_crop_is_used(store: Path) -> None:
    opened = CropStore.open(store)
    small = Sampler(opened, (16, 16, 16), 8, seed=0)
    padded = [batch for batch in map(small.draw, range(16)) if batch.inside is not None]
    assert len(padded) == CROPS_A_LAP  # the scan that is 12 voxels deep, eight times a lap


@pytest.mark.parametrize("door", [pretrain, prepare, finetune, segment, evaluate], ids=lambda door: door.__name__)
def test_18_every_option_is_used(door: object) -> None:
    """Each field of a door's config is read somewhere, or is a setting of the plan that it fills."""
    name = door.__name__.split(".")[-1]  # type: ignore[attr-defined]
    kind = getattr(door, f"{name.capitalize()}Config")
    shared = set(DoorConfig.__dataclass_fields__)
    source = "".join(path.read_text(encoding="utf-8") for path in ENGINE.rglob("*.py"))
    plan = set(PretrainingPlan.__dataclass_fields__) if door is pretrain else set()
    unused = {
        f
        for f in kind.__dataclass_fields__
        if f not in shared | plan and not re.search(rf"\b(config|options|asked)\.{f}\b", source)
    }
    assert unused == set()


def test_19_no_step_has_a_rate_of_zero() -> None:
    assert all(cosine_rate(step, 100, warm_up=10) > 0 for step in range(100))


@pytest.mark.parametrize("variant", list_variants())
def test_20_every_variant_can_be_fine_tuned(variant: str) -> None:
    with torch.device("meta"):
        model, network = (
            build_pretraining_model(variant),
            build_segmentation(segmentation_architecture(variant, classes=3)),
        )
    state = {key.removeprefix("encoder."): v for key, v in model.state_dict().items() if key.startswith("encoder.")}
    transfer_encoder(network, {key: torch.empty_like(value, device="meta") for key, value in state.items()})

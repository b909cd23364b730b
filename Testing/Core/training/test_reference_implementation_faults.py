"""Faults of the authors' released code do not occur in the engine.

Each docstring names the fault by its number in the list of the project's specification. Faults 2, 13, 14 and 17 are crashes
by names that do not exist or imports that fail: the tests that run the commands cover them.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from HiEndMAECore import evaluate, finetune, prepare, pretrain, segment
from HiEndMAECore.cli.options import CommandConfig
from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.errors import UsageError
from HiEndMAECore.models.authors import read_authors_checkpoint
from HiEndMAECore.models.pretrained import load_encoder
from HiEndMAECore.networks import (
    HiEndMAE,
    build_network,
    build_pretraining_model,
    segmentation_architecture,
)
from HiEndMAECore.networks.masking import num_visible_patches
from HiEndMAECore.networks.variants import list_vit_variants, pretraining_arguments
from HiEndMAECore.runtime.distributed import DistributedContext
from HiEndMAECore.training.checkpoints import newest_checkpoint
from HiEndMAECore.training.crop_sampling import CROPS_PER_EPOCH, CropSampler
from HiEndMAECore.training.optimizer import build_adamw, weight_decay_groups
from HiEndMAECore.training.plans import PretrainingPlan
from HiEndMAECore.training.schedule import cosine_schedule

ENGINE = Path(pretrain.__file__).parent
TINY = "hi_end_mae_vit_tiny_8p"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays = [rng.random((1, 40, 44, depth), dtype=np.float32) for depth in (36, 12)]
    scans = [write_scan(tmp_path / "store", f"scan{index}", array) for index, array in enumerate(arrays)]
    preparation = {"spacing": [3, 3, 3], "normalisation": {"kind": "window", "low": -175, "high": 250}}
    write_manifest(tmp_path / "store", {"scans": scans, "channels": 1, "preparation": preparation})
    return tmp_path / "store"


def config(store: Path, output: Path, **options: object) -> pretrain.PretrainConfig:
    given = {"variant": TINY, "crop": (16, 16, 16), "steps": 3, "batch_size": 2, "device": "cpu", **options}
    return pretrain.PretrainConfig(data=store, output=output, **given)  # type: ignore[arg-type]


def test_default_variant_is_a_known_network() -> None:
    """Fault 1: the default value of the option for the network is a misspelled name."""
    variant = pretrain.PretrainConfig(data=Path("a"), output=Path("b")).variant
    assert variant in list_vit_variants()
    with torch.device("meta"):
        assert isinstance(build_pretraining_model(variant), HiEndMAE)


def test_run_in_a_new_folder_resumes_and_prints_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults 3 and 12: a run cannot be resumed or make nested folders, and it prints the network in every process."""
    output = tmp_path / "a" / "b" / "c"
    pretrain.run(config(store, output))
    checkpoint = newest_checkpoint(output, on_damage=lambda error: pytest.fail(str(error)))
    assert checkpoint is not None
    assert checkpoint.name == "step-00000003.safetensors"
    with pytest.raises(UsageError):
        pretrain.run(config(store, output))  # without `resume` it would overwrite the first run
    pretrain.run(config(store, output, resume=True))
    assert capsys.readouterr().out == ""


def test_weight_decay_of_a_parameter_group_is_applied() -> None:
    """Fault 4: the weight decay of a group is stored and never applied."""
    model = build_pretraining_model(TINY, image_size=(16, 16, 16))
    groups = weight_decay_groups(model, 0.05)
    optimizer = build_adamw(groups, learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    norm = model.encoder.norm.weight
    norm.grad = torch.zeros_like(norm)
    before = norm.detach().clone()
    optimizer.step()
    assert torch.equal(norm, before)


def test_crop_sampler_in_each_epoch_draws_new_crops(store: Path) -> None:
    """Fault 5: the workers of the data loader start every epoch with the same random state."""
    sampler = CropSampler(CropStore.open(store), (16, 16, 16), 8, seed=0)
    crops = [sampler.draw(index).volume.numpy().tobytes() for index in range(3 * CROPS_PER_EPOCH * 2)]
    assert len(set(crops)) > 0.9 * len(crops)  # few positions repeat by chance; the released code repeats two thirds


def test_crop_sampler_in_each_process_draws_its_own_masks(store: Path) -> None:
    """Fault 6: all processes draw the same masks."""
    sampler = CropSampler(CropStore.open(store), (16, 16, 16), 8, seed=0)
    shares = [DistributedContext(rank, 2).shard(range(8, 16)) for rank in (0, 1)]
    assert sorted([*shares[0], *shares[1]]) == list(range(8, 16))
    masks = [sampler.draw(index).permutation.tolist() for share in shares for index in share]
    assert len({str(mask) for mask in masks}) == len(masks)


def test_crop_that_is_not_a_cube_keeps_the_patch_size_of_its_variant(store: Path, tmp_path: Path) -> None:
    """Fault 7: the crop is fixed at 96 voxels, and the patch size is an option that may disagree with the variant."""
    for variant in list_vit_variants():
        assert pretraining_arguments(variant)["patch_size"] == int(re.findall(r"(\d+)p$", variant)[0])
    pretrain.run(config(store, tmp_path / "box", crop=(16, 24, 8)))
    with pytest.raises(UsageError, match="not divisible"):
        pretrain.run(config(store, tmp_path / "odd", crop=(16, 16, 15)))


@pytest.mark.parametrize(("patches", "ratio", "visible"), [(1000, 0.9, 100), (1000, 0.8, 200), (512, 0.75, 128)])
def test_visible_patches_for_an_inexact_ratio_are_counted_exactly(patches: int, ratio: float, visible: int) -> None:
    """Fault 9: of 1000 patches, a mask ratio of 0.9 leaves 99 visible, and a ratio of 0 masks all of them."""
    assert num_visible_patches(patches, ratio) == visible
    with pytest.raises(ValueError, match="one masked"):
        num_visible_patches(patches, 0.0)


def test_authors_checkpoint_with_the_safe_loader_is_read(tmp_path: Path) -> None:
    """Fault 10: torch 2.6 and later refuse the file, because they load weights only by default."""
    state = {"module.mask_token": torch.zeros(1, 1, 4)}
    torch.save({"epoch": 1, "state_dict": state, "optimizer": {}, "scaler": {}}, tmp_path / "weights.pth")
    assert set(read_authors_checkpoint(tmp_path / "weights.pth")) == {"mask_token"}


def test_scan_smaller_than_the_crop_is_padded(store: Path) -> None:
    """Fault 11: a scan that is smaller than the crop raises an error."""
    sampler = CropSampler(CropStore.open(store), (16, 16, 16), 8, seed=0)
    padded = [batch for batch in map(sampler.draw, range(16)) if batch.valid_mask is not None]
    assert len(padded) == CROPS_PER_EPOCH  # the scan that is 12 voxels deep, eight times in each epoch


@pytest.mark.parametrize(
    "command", [pretrain, prepare, finetune, segment, evaluate], ids=lambda command: command.__name__
)
def test_every_option_of_a_command_is_used(command: object) -> None:
    """Fault 18: many options are parsed and ignored.

    Each field of a command's configuration is read somewhere, or is a setting of the plan that it fills.
    """
    name = command.__name__.split(".")[-1]  # type: ignore[attr-defined]
    kind = getattr(command, f"{name.capitalize()}Config")
    shared = set(CommandConfig.__dataclass_fields__)
    source = "".join(path.read_text(encoding="utf-8") for path in ENGINE.rglob("*.py"))
    plan = set(PretrainingPlan.__dataclass_fields__) if command is pretrain else set()
    unused = {
        f
        for f in kind.__dataclass_fields__
        if f not in shared | plan and not re.search(rf"\b(config|options|asked)\.{f}\b", source)
    }
    assert unused == set()


def test_learning_rate_of_every_step_is_positive() -> None:
    """Fault 19: the learning rate of the first epoch of fine-tuning is 0."""
    assert all(cosine_schedule(step, 100, warm_up=10) > 0 for step in range(100))


@pytest.mark.parametrize("variant", list_vit_variants())
def test_encoder_of_every_vit_variant_can_be_fine_tuned(variant: str) -> None:
    """Fault 20: a checkpoint with patches of 16 voxels cannot be fine-tuned."""
    with torch.device("meta"):
        model = build_pretraining_model(variant)
        network = build_network(segmentation_architecture(variant, classes=3))
    state = {key.removeprefix("encoder."): v for key, v in model.state_dict().items() if key.startswith("encoder.")}
    load_encoder(network, {key: torch.empty_like(value, device="meta") for key, value in state.items()})

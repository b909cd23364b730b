"""Training checkpoints: what is retained, which run may resume from one, and runs of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import RequestAt, cube_case, finetune, pretrain, small_mae, small_store, small_unetr

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.store_writer import write_manifest
from HiEndMAECore.errors import Cancelled, InputError
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import finetuning
from HiEndMAECore.training.checkpoints import load_checkpoint, read_checkpoint_values, save_checkpoint
from HiEndMAECore.training.optimizer import build_adamw
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.training_cases import TrainingCase


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    return small_store(tmp_path / "store")


@pytest.fixture
def checkpoint_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "_CHECKPOINT_SECONDS", 0.0)


def test_pretrain_retains_the_newest_checkpoints_and_skips_a_damaged_one(store: CropStore, tmp_path: Path) -> None:
    complete = pretrain(store, tmp_path, small_mae(), checkpoint_minutes=0, max_checkpoints=3)
    names = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert names == [f"step-{step:08d}.safetensors" for step in (10, 11, 12)]
    newest = tmp_path / "snapshots" / names[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with Reporter(quiet=True) as report:
        again = pretrain(store, tmp_path, small_mae(seed=7), report, resume=True)
    assert [warning["code"] for warning in report.warnings] == ["snapshot_damaged"]
    assert again.losses == complete.losses


def test_pretrain_refuses_the_checkpoint_of_another_network(store: CropStore, tmp_path: Path) -> None:
    pretrain(store, tmp_path, small_mae())
    with pytest.raises(InputError, match="belongs to another network"):
        pretrain(store, tmp_path, small_mae(patch_size=8), resume=True)


def test_pretrain_refuses_the_checkpoint_of_other_groups_or_another_store(store: CropStore, tmp_path: Path) -> None:
    """With other parameter groups, parameters would get each other's moments."""
    pretrain(store, tmp_path, small_mae(), steps=3)
    with pytest.raises(InputError, match="belongs to another network"):
        pretrain(store, tmp_path, small_mae(), resume=True, decay_all=False)
    write_manifest(store.path, {**store.manifest, "scans": store.manifest["scans"][1:]})
    with pytest.raises(InputError, match="a store of other scans"):
        pretrain(CropStore.open(store.path), tmp_path, small_mae(), resume=True)


@pytest.mark.usefixtures("checkpoint_every_step")
def test_finetune_resumed_after_cancel_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    complete = finetune(tmp_path / "a", steps=8)
    with pytest.raises(Cancelled):
        finetune(tmp_path / "b", RequestAt(5, "cancel"), steps=8)
    resumed = finetune(tmp_path / "b", steps=8, resume=True)
    assert resumed.losses == complete.losses
    assert all(torch.equal(a, b) for a, b in zip(complete.network.parameters(), resumed.network.parameters()))


@pytest.mark.parametrize("other", ["seed", "steps", "labels", "scan"])
@pytest.mark.usefixtures("checkpoint_every_step")
def test_finetune_refuses_the_checkpoint_of_another_run(tmp_path: Path, other: str) -> None:
    with pytest.raises(Cancelled):
        finetune(tmp_path, RequestAt(3, "cancel"), steps=6)
    plan = {"steps": 6, **({other: 7} if other in ("seed", "steps") else {})}
    case = cube_case()
    if other in ("labels", "scan"):
        (case.classes if other == "labels" else case.image[0])[0, 0, 0] = 1
    with pytest.raises(InputError, match="other scans, labels or settings"):
        finetune(tmp_path, case=case, resume=True, **plan)


@pytest.mark.parametrize(
    ("plan", "cases", "digest"),
    [
        ({"crop": (16, 16, 16), "steps": 60}, 1, "a56e8f03c3f411b5ff7014ff392b3513"),
        (
            {
                "crop": (96, 96, 96), "seconds": 282.0, "batch_size": 4, "encoder_rate": 1e-4, "clip": None, "seed": 7,
            },
            2,
            "42ff46909f402f595a30b337e8e28192",
        ),
    ],
)  # fmt: skip
def test_digest_run_equals_that_of_the_first_release(plan: dict[str, Any], cases: int, digest: str) -> None:
    """The digests were computed by version 493a06a, whose interrupted runs must be resumable."""
    classes = (torch.arange(4 * 5 * 6).view(4, 5, 6) % 3).to(torch.int16)
    image = (torch.arange(4 * 5 * 6, dtype=torch.float32) / 120).view(1, 4, 5, 6)
    case = TrainingCase("a", image, classes)
    assert finetuning.digest_run(FinetuningPlan(**plan), [case] * cases) == digest


@pytest.mark.usefixtures("checkpoint_every_step")
def test_finetune_checkpoint_has_its_stored_keys(tmp_path: Path) -> None:
    """Names in the file are contracts: other versions read and write them."""
    from safetensors import safe_open

    with pytest.raises(Cancelled):
        finetune(tmp_path, RequestAt(3, "cancel"), steps=6)
    values = read_checkpoint_values(tmp_path / "snapshot.safetensors")
    assert values is not None
    assert list(values) == ["step", "planned", "seconds", "losses", "fastest", "run", "preset"]
    with safe_open(str(tmp_path / "snapshot.safetensors"), framework="pt") as file:
        assert {key.split("/")[0] for key in file.keys()} == {"network", "averaged", "optimiser"}  # noqa: SIM118


def test_load_checkpoint_leaves_the_file_unmapped(tmp_path: Path) -> None:
    """Windows refuses to replace a file that is mapped into memory."""
    network, path = small_unetr(), tmp_path / "checkpoint.safetensors"
    optimizer = build_adamw(network.parameters(), learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    network(torch.rand(1, 1, 16, 16, 16)).sum().backward()
    optimizer.step()
    save_checkpoint(path, {"network": network}, optimizer, {"step": 1})
    load_checkpoint(path, {"network": network}, optimizer)
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs the list of mapped files of Linux")
    assert str(path) not in Path("/proc/self/maps").read_text()

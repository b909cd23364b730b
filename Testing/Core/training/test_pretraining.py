"""The pretraining loop: it learns, its options do not change the result, and it stops and resumes without losing steps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_examples import CPU, RequestAt, pretrain, small_mae, small_store

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.errors import Cancelled, HiEndMAEError
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import pretraining
from HiEndMAECore.training.checkpoints import load_checkpoint, newest_checkpoint
from HiEndMAECore.training.monitor import nearest_visible_patch
from HiEndMAECore.training.optimizer import build_adamw
from HiEndMAECore.training.plans import PretrainingPlan
from HiEndMAECore.training.pretraining_steps import PretrainingSteps
from HiEndMAECore.training.training_log import read_log


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    return small_store(tmp_path / "store")


def checkpoint_of(folder: Path) -> Path:
    path = newest_checkpoint(folder, on_damage=lambda error: pytest.fail(str(error)))
    assert path is not None
    return path


def test_pretrain_lowers_the_loss(store: CropStore, tmp_path: Path) -> None:
    result = pretrain(store, tmp_path, small_mae())
    losses = [loss for _, loss in result.losses]
    assert result.steps == 12
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_pretrain_resumed_after_cancel_equals_an_uninterrupted_run(
    store: CropStore, tmp_path: Path, precision: str
) -> None:
    model = small_mae()
    uninterrupted = pretrain(store, tmp_path / "a", model, precision=precision)
    with pytest.raises(Cancelled, match="--resume"):
        pretrain(store, tmp_path / "b", small_mae(), RequestAt(5, "cancel"), precision=precision)
    resumed = small_mae(seed=9)  # its random initial weights are replaced
    result = pretrain(store, tmp_path / "b", resumed, resume=True, precision=precision)
    assert result.losses == uninterrupted.losses
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), resumed.parameters()))


def test_pretrain_cancelled_at_the_last_step_saves_first(store: CropStore, tmp_path: Path) -> None:
    """The request arrives with the progress report that follows the last step; a short run has no checkpoint before."""
    uninterrupted = pretrain(store, tmp_path / "a", small_mae())
    with pytest.raises(Cancelled) as caught:
        pretrain(store, tmp_path / "b", model := small_mae(), RequestAt(12, "cancel"))
    assert "--resume" in caught.value.advice
    assert checkpoint_of(tmp_path / "b").name == "step-00000012.safetensors"
    assert read_log(tmp_path / "b")[-1]["watch_loss"] == uninterrupted.validation_losses[-1][1]
    resumed = small_mae(seed=9)
    assert pretrain(store, tmp_path / "b", resumed, resume=True).losses == uninterrupted.losses
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), resumed.parameters()))


def test_pretrain_cancelled_at_the_last_step_calls_back_with_the_saved_state(store: CropStore, tmp_path: Path) -> None:
    """The callback writes the model folder, so that a run cancelled at its end leaves a model."""
    calls: list[tuple[int, bool]] = []
    with pytest.raises(Cancelled):
        pretraining.pretrain(
            store,
            small_mae(),
            plan=PretrainingPlan(steps=3, batch_size=4),
            device=CPU,
            folder=tmp_path / "run",
            report=RequestAt(3, "cancel"),
            on_validation=lambda result, crops, output, saved: calls.append((result.steps, saved)),
        )
    assert calls == [(3, True)]


def test_pretrain_with_infinite_loss_stops_and_names_the_scans(store: CropStore, tmp_path: Path) -> None:
    model = small_mae()
    with torch.no_grad():
        model.decoder.head.bias.fill_(float("inf"))
    with pytest.raises(HiEndMAEError, match=r"at step 1, on the scans scan\d"):
        pretrain(store, tmp_path / "run", model)


def test_pretrain_with_nan_loss_keeps_the_state_before_that_step(store: CropStore, tmp_path: Path) -> None:
    model = small_mae()
    good: dict[str, torch.Tensor] = {}

    class CopyWeights(Reporter):
        def progress(self, stage: str, step: int, total: int, **values: object) -> None:
            if step == 3:  # three steps are taken, and the gradients of the fourth are computed
                good.update({name: value.clone() for name, value in model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        crop = CropStore.crop
        calls = iter(range(10**6))

        def crop_with_nan(self: CropStore, index: int, **where: Any) -> np.ndarray:
            value = crop(self, index, **where)
            return value * np.nan if next(calls) >= 32 + 12 else value  # 32 validation crops, 3 steps of 4 crops

        patch.setattr(CropStore, "crop", crop_with_nan)
        with pytest.raises(HiEndMAEError, match=r"The loss was nan at step 4") as caught:
            pretrain(store, tmp_path, model, CopyWeights(quiet=True), workers=0)
    assert caught.value.code == "loss_not_finite"
    assert checkpoint_of(tmp_path).name == "step-00000003.safetensors"
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(torch.equal(good[name], value) for name, value in model.state_dict().items())


def test_pretrain_with_nan_gradient_saves_no_checkpoint_of_it(
    store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the third step is finite and its update is not: the newest checkpoint is that of the second."""
    update, steps = PretrainingSteps.update_weights, iter(range(100))

    def update_with_nan(self: Any) -> None:
        if next(steps) == 2:
            self.model.mask_token.grad.fill_(float("nan"))
        update(self)

    monkeypatch.setattr(PretrainingSteps, "update_weights", update_with_nan)
    with pytest.raises(HiEndMAEError, match="The loss was nan at step 4") as caught:
        pretrain(store, tmp_path, small_mae(), checkpoint_minutes=0.0)
    assert "step-00000002" in caught.value.advice
    model = small_mae()
    optimizer = build_adamw(model.parameters(), learning_rate=1e-3, betas=(0.9, 0.999), weight_decay=0.0)
    load_checkpoint(checkpoint_of(tmp_path), {"model": model}, optimizer)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"recompute": True}, {"workers": 0}, {"precision": "fp32", "accumulate": 4}]
)
def test_pretrain_with_other_ways_to_compute_a_step_has_the_same_losses(
    store: CropStore, tmp_path: Path, options: dict[str, Any]
) -> None:
    plain = pretrain(store, tmp_path / "a", small_mae(), precision="fp32")
    other = pretrain(store, tmp_path / "b", small_mae(), **{"precision": "fp32", **options})
    assert [loss for _, loss in other.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_pretrain_in_low_precision_learns_as_well(store: CropStore, tmp_path: Path, precision: str) -> None:
    exact = pretrain(store, tmp_path / "a", small_mae(), precision="fp32")
    other = pretrain(store, tmp_path / "b", small_mae(), precision=precision)
    assert other.losses[-1][1] == pytest.approx(exact.losses[-1][1], rel=0.1)
    assert other.losses != exact.losses


def test_pretrain_compiled_has_the_same_losses(
    store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole step is traced; generating code from the trace would take a C++ compiler a minute."""
    plain = pretrain(store, tmp_path / "a", small_mae(), precision="fp32", steps=3)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    compiled = pretrain(store, tmp_path / "b", small_mae(), precision="fp32", steps=3, compile=True)
    assert [loss for _, loss in compiled.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-4)


def test_pretrain_with_clipping_bounds_the_update(store: CropStore, tmp_path: Path) -> None:
    model = small_mae()
    pretrain(store, tmp_path, model, clip=1e-12, weight_decay=0.0)
    # Adam divides by the size of the gradients: only its eps of 1e-8 makes updates with such gradients small.
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), small_mae().parameters()))
    assert moved < 1e-4


def test_training_log_has_every_step_and_the_trivial_losses(store: CropStore, tmp_path: Path) -> None:
    result = pretrain(store, tmp_path, small_mae())
    lines = read_log(tmp_path)
    assert 0.2 < lines[0]["zero_loss"] < 1.01  # constant patches count as 0
    assert lines[0]["nearest_loss"] > 0
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert lines[-1]["watch_loss"] == result.validation_losses[-1][1]
    assert 0 <= max(record.waited for record in result.records) <= 1


def test_tensorboard_has_the_losses_of_the_log(store: CropStore, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = pretrain(store, tmp_path, small_mae(), tensorboard=True)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 13))
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([loss for _, loss in result.losses])


def test_nearest_visible_patch_has_the_smallest_distance() -> None:
    visible, masked = torch.tensor([[0, 63]]), torch.tensor([[1, 62, 21, 47]])  # in a grid of 4 x 4 x 4
    assert nearest_visible_patch(visible, masked, (4, 4, 4)).tolist() == [[0, 63, 0, 63]]

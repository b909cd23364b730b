"""The fine-tuning loop: it learns, it is reproducible, and its plan decides what is trained."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from training_examples import CPU, RequestAt, cube_case, finetune, small_unetr

from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import augmentation, finetuning
from HiEndMAECore.training.default_recipe import DefaultRecipe, draw_batch
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.training_cases import TrainingCase


def test_finetune_learns_every_structure(tmp_path: Path) -> None:
    case = cube_case()
    network = finetune(tmp_path).network
    with torch.no_grad():
        prediction = network(case.image[None, :, :24, :24, :24]).argmax(1)[0]
    reference = case.classes[:24, :24, :24]
    for value in (1, 2):
        common = ((prediction == value) & (reference == value)).sum()
        dice = 2 * common / ((prediction == value).sum() + (reference == value).sum())
        assert dice > 0.7, f"structure {value}: Dice {float(dice):.2f}"


def test_finetune_depends_on_the_seed_alone(tmp_path: Path) -> None:
    one, same, other = (finetune(tmp_path, steps=3, seed=seed) for seed in (0, 0, 1))
    assert one.losses == same.losses
    assert one.losses != other.losses
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), same.network.parameters()))


def test_finetune_with_finish_request_ends_early_with_a_usable_network(tmp_path: Path) -> None:
    result = finetune(tmp_path, RequestAt(4, "finish"), steps=50)
    assert (result.steps, result.planned) == (4, 50)
    assert torch.isfinite(result.network(torch.rand(1, 1, 16, 16, 16))).all()


def test_finetune_with_a_budget_converts_it_to_steps_once(tmp_path: Path) -> None:
    result = finetune(tmp_path, steps=None, seconds=3.0)
    assert result.planned >= 20
    assert result.steps == result.planned or result.seconds > 1.25 * 3.0  # another process may use the machine


def test_draw_batch_may_crop_several_cases() -> None:
    case = cube_case()
    dark = TrainingCase("dark", case.image * 0.1, case.classes)
    plan = FinetuningPlan(crop=(8, 8, 8), steps=1, batch_size=6)
    recipe = DefaultRecipe([case, dark], classes=3, plan=plan)
    images, targets, _ = draw_batch([case, dark], recipe, step=2, plan=plan)
    drawn_cases = set()
    for row, index in enumerate(range(12, 18)):
        number, center, parameters = recipe.draw(index, plan.crop)
        image = [case, dark][number].image
        crop, classes = augmentation.crop_augmented(image, case.classes, center, plan.crop, parameters)
        torch.testing.assert_close(images[row], crop)
        assert torch.equal(targets[row, 0], classes)
        drawn_cases.add(number)
    assert drawn_cases == {0, 1}


def test_finetune_with_layer_decay_slows_the_early_layers(tmp_path: Path) -> None:
    moved = {}
    for decay in (1.0, 0.1):
        network = small_unetr()
        before = network.encoder.patch_embed.proj.weight.detach().clone()
        plan = FinetuningPlan(crop=(16, 16, 16), steps=3, layer_decay=decay)
        finetuning.finetune([cube_case()], network, plan=plan, device=CPU, folder=tmp_path, report=Reporter(quiet=True))
        moved[decay] = float((network.encoder.patch_embed.proj.weight.detach() - before).abs().mean())
    assert moved[0.1] < 1e-2 * moved[1.0]


def test_finetune_with_encoder_rate_zero_freezes_the_encoder(tmp_path: Path) -> None:
    network = small_unetr()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plan = FinetuningPlan(crop=(16, 16, 16), steps=3, encoder_rate=0.0)
    finetuning.finetune([cube_case()], network, plan=plan, device=CPU, folder=tmp_path, report=Reporter(quiet=True))
    moved = {name for name, value in network.state_dict().items() if not value.equal(before[name])}
    assert moved
    assert not any(name.startswith("encoder.") for name in moved)


def test_train_step_moves_the_crops_to_the_device_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Apple's graphics, the CPU cuts the crops. The device is a stand-in without values, so the step ends there."""
    case, network, plan = cube_case(), small_unetr(), FinetuningPlan(crop=(16, 16, 16), steps=1)

    def stop(module: torch.nn.Module, inputs: Any) -> None:
        raise StopIteration(inputs[0].device)

    network.register_forward_pre_hook(stop)
    monkeypatch.setattr(finetuning, "autocast", lambda device, **_: contextlib.nullcontext())
    recipe, optimizer = DefaultRecipe([case], classes=3, plan=plan), finetuning.build_optimizer(network, plan)
    with pytest.raises(StopIteration, match="meta"):
        finetuning.train_step(
            [case], recipe, network, optimizer, step=0, done=0.0, plan=plan, device=torch.device("meta")
        )

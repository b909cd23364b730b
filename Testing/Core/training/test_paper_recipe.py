"""The paper's fine-tuning recipe: schedule, crops, augmentation, and shares of a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from training_examples import CPU, cube_case, small_unetr

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.datasets import nested_subset
from HiEndMAECore.errors import UsageError
from HiEndMAECore.finetune import FinetuneConfig
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import augmentation, finetuning, presets
from HiEndMAECore.training.paper_recipe import PaperLoss, PaperRecipe, paper_plan
from HiEndMAECore.training.training_cases import IGNORED, TrainingCase


def test_nested_subset_of_a_larger_share_contains_the_smaller_ones() -> None:
    cases = [Case(f"case{index:03d}", ()) for index in range(157)]
    chosen = {percent: [c.name for c in nested_subset(cases, percent, seed=0)] for percent in (1, 10, 100)}
    assert [len(chosen[percent]) for percent in (1, 10, 100)] == [2, 16, 157]
    assert set(chosen[1]) < set(chosen[10]) < set(chosen[100])
    assert chosen[10] == sorted(chosen[10])
    assert chosen[10] == [c.name for c in nested_subset(cases[::-1], 10, seed=0)]
    assert chosen[10] != [c.name for c in nested_subset(cases, 10, seed=1)]
    assert len(nested_subset(cases[:5], 1, seed=0)) == 1
    with pytest.raises(ValueError, match="is 0"):
        nested_subset(cases, 0, seed=0)


def test_finetune_config_with_share_and_without_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--share"):
        FinetuneConfig(image=("a.nii",), label=(Path("b.nii"),), output=tmp_path, share=10)


def test_paper_plan_has_the_numbers_of_the_paper() -> None:
    plan = paper_plan(crop=(96, 96, 96), cases=1)
    assert (plan.steps, plan.batch_size, plan.learning_rate, plan.encoder_rate) == (5000, 4, 1e-4, 1e-4)
    assert (plan.weight_decay, plan.clip, plan.warm_up * 5000) == (1e-5, None, 50)
    ten_percent = paper_plan(crop=(96, 96, 96), cases=24, share=10)
    assert (ten_percent.steps, round(ten_percent.warm_up * 2000 * 24)) == (2000 * 24, 50 * 24)
    assert paper_plan(crop=(96, 96, 96), cases=1, steps=10).steps == 10


def test_paper_preset_has_the_variant_and_spacing_of_the_paper() -> None:
    preset = presets.choose_preset("paper-one-shot", CPU)
    assert (preset.variant, preset.batch_size, preset.spacing) == ("hi_end_mae_vit_large_12p", 4, (1.5, 1.5, 1.5))


def ball_case() -> TrainingCase:
    case = cube_case()
    return TrainingCase("ball", case.image, torch.where(case.classes == 1, 0, case.classes))


def test_paper_loss_with_ignored_voxels_is_that_of_the_other_voxels() -> None:
    """Only voxels at the end are ignored, so that a smaller crop has the same others."""
    torch.manual_seed(0)
    logits, classes = torch.randn(2, 3, 4, 4, 6, dtype=torch.float64), torch.randint(0, 3, (2, 1, 4, 4, 6)).short()
    wanted = PaperLoss()(logits[..., :4], classes[..., :4], done=0.0)
    classes[..., 4:] = IGNORED
    loss = PaperRecipe([TrainingCase("part", classes[0].float(), classes[0, 0])], seed=0).criterion
    assert loss(logits, classes, done=0.0).item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.isfinite(loss(logits, torch.full_like(classes, IGNORED), done=0.0))


def test_paper_recipe_takes_four_crops_of_each_volume_once_an_epoch() -> None:
    """Half of the crops are centered on labelled voxels, and all lie within the scan."""
    recipe = PaperRecipe([ball_case()] * 3, seed=0)
    draws = [recipe.draw(index, (8, 8, 8)) for index in range(1200)]
    for epoch in range(3):
        volumes = [draws[12 * epoch + 4 * position][0] for position in range(3)]
        assert sorted(volumes) == [0, 1, 2]
        assert all(
            draws[12 * epoch + 4 * position + crop][0] == volumes[position]
            for position in range(3)
            for crop in range(4)
        )
    centers = np.array([center for _, center, _ in draws])
    assert centers.min() >= 3.5
    assert centers.max() <= 23.5
    near_ball = np.linalg.norm(centers - np.array([18.5, 18.5, 13.5]), axis=1) < 6.5
    assert 0.45 < near_ball.mean() < 0.62


def test_paper_recipe_augments_with_the_probabilities_of_the_paper() -> None:
    case = ball_case()
    recipe = PaperRecipe([case] * 3, seed=0)
    draws = [recipe.draw(index, (8, 8, 8)) for index in range(1200)]
    augmentations = [parameters for _, _, parameters in draws]
    mirrored = np.array([np.linalg.det(parameters.matrix) < 0 for parameters in augmentations])
    assert abs(mirrored.mean() - 3 * 0.2 * 0.64 - 0.008) < 0.06  # an odd number of three flips
    rotated = np.mean([abs(p.matrix[0, 0]) < 0.5 or abs(p.matrix[1, 0]) > 0.5 for p in augmentations])
    assert abs(rotated - 0.2 * 2 / 3) < 0.04  # half turns cannot be distinguished from flips
    assert abs(np.mean([parameters.gain != 1 for parameters in augmentations]) - 0.1) < 0.03
    _, center, parameters = next(d for d in draws if d[2].gain == 1 and abs(d[2].matrix[0, 0]) < 0.5)
    crop, _ = augmentation.crop_augmented(case.image, case.classes, center, (8, 8, 8), parameters)
    values = set(np.round(case.image.numpy().ravel(), 3))
    assert set(np.round((crop - parameters.shift).numpy().ravel(), 3)) <= values  # nothing was interpolated


def test_finetune_with_the_paper_recipe_learns_and_takes_the_last_weights(tmp_path: Path) -> None:
    case = cube_case()
    plan = paper_plan(crop=(16, 16, 16), cases=1, steps=12)
    assert (plan.ema, plan.batch_size) == (0.0, 4)
    network = small_unetr()
    result = finetuning.finetune(
        [case],
        network,
        plan=plan,
        device=CPU,
        folder=tmp_path,
        report=Reporter(quiet=True),
        recipe=PaperRecipe([case], seed=0),
    )
    assert result.losses[-1][1] < result.losses[0][1]
    for averaged, last in zip(result.network.parameters(), network.parameters()):
        torch.testing.assert_close(averaged, last, atol=1e-6, rtol=1e-5)

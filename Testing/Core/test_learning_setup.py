"""What learning is set up with: budget and clock, the paper's schedule, shares of a data set, rates by layer, crops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks.layers import GaussianFilter
from test_training import CPU, cube_scan, small_unetr
from torch.nn import functional as F

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.datasets import nested_subset
from HiEndMAECore.errors import UsageError
from HiEndMAECore.finetune import FinetuneConfig
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import augmentation, finetuning, paper_recipe, presets, time_budget
from HiEndMAECore.training.optimizer import layer_decay_groups
from HiEndMAECore.training.plans import FinetuningPlan
from HiEndMAECore.training.training_cases import TrainingCase

# -- the whole batch at once -------------------------------------------------------------------------------------------


def plain_cut(image: torch.Tensor, labels: torch.Tensor, center: np.ndarray, size: tuple[int, ...], change: Any) -> Any:
    """One crop after the other, one change after the other, as one would write it first."""
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ torch.tensor(change.matrix.T)
    places = places + torch.tensor(np.asarray(center, float))
    lattice = torch.tensor(change.bend)[None]
    places = places + F.interpolate(lattice, size=size, mode="trilinear", align_corners=True)[0].movedim(0, -1)
    grid = ((places * 2 + 1) / torch.tensor(image.shape[1:]) - 1).flip(-1)[None]
    crop = F.grid_sample(image[None].double(), grid, align_corners=False)[0].float()
    target = F.grid_sample(labels[None, None].double(), grid, mode="nearest", align_corners=False)[0, 0]
    if change.blur:
        crop = GaussianFilter(3, change.blur, truncated=2.0)(crop[None])[0]
    crop = crop.clamp(min=0) ** change.gamma * change.gain + change.shift
    if change.noise:
        crop = crop + change.noise * torch.randn(crop.shape, generator=torch.Generator().manual_seed(change.seed))
    return crop, target.to(labels.dtype)


@pytest.mark.parametrize("size", [(16, 16, 16), (15, 12, 9)])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_batch_is_its_crops(size: tuple[int, int, int], channels: int) -> None:
    """Every draw by itself: no crop's blur, gamma or noise reaches another."""
    scan = cube_scan()
    image = torch.cat([scan.image, 1 - scan.image][:channels]).clamp(0, 1)
    changes = [augmentation.draw_augmentation(augmentation.sample_generator(0, index), size) for index in range(40)]
    assert Counter(c.blur > 0 for c in changes)[True] >= 2
    assert Counter(c.noise > 0 for c in changes)[True] >= 2
    rng = np.random.default_rng(0)
    centers = list(rng.uniform(0, 27, (len(changes), 3)))
    crops, targets = augmentation.crop_batch_augmented(image, scan.classes, centers, size, changes)
    assert crops.shape == (40, channels, *size)
    assert targets.dtype == scan.classes.dtype
    for crop, target, center, change in zip(crops, targets, centers, changes):
        expected, classes = plain_cut(image, scan.classes, center, size, change)
        torch.testing.assert_close(crop, expected, atol=2e-4, rtol=1e-4)
        assert (target != classes).float().mean() < 2e-3  # voxels halfway between two


def test_crops_of_one_step_may_be_of_several_scans() -> None:
    scan = cube_scan()
    dark = TrainingCase("dark", scan.image * 0.1, scan.classes)
    plan = FinetuningPlan(crop=(8, 8, 8), steps=1, batch_size=6)
    method = finetuning.DefaultRecipe([scan, dark], classes=3, plan=plan)
    images, targets = finetuning.draw_batch([scan, dark], method, step=2, plan=plan)
    seen = set()
    for row, index in enumerate(range(12, 18)):
        of, center, change = method.draw(index, plan.crop)
        image, classes = augmentation.crop_augmented([scan, dark][of].image, scan.classes, center, plan.crop, change)
        torch.testing.assert_close(images[row], image)
        assert torch.equal(targets[row, 0], classes)
        seen.add(of)
    assert seen == {0, 1}


# -- rates by depth ----------------------------------------------------------------------------------------------------


def test_deeper_layers_learn_faster() -> None:
    network = small_unetr()
    groups = layer_decay_groups(network.layer_groups(), 1e-3, decay=0.5)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    named = dict(network.encoder.named_parameters())
    assert len(rates) == len(named) == sum(len(group["params"]) for group in groups)

    def of(name: str) -> float:
        return rates[id(named[name])]

    assert of("norm.weight") == of("blocks.3.attn.qkv.weight") == 1e-3
    assert of("blocks.2.mlp.fc1.bias") == pytest.approx(5e-4)
    assert of("blocks.0.norm1.weight") == pytest.approx(1.25e-4)
    assert of("patch_embed.proj.weight") == of("cls_token") == pytest.approx(6.25e-5)
    assert len(layer_decay_groups(network.layer_groups(), 1e-3, decay=1.0)) == 1
    with pytest.raises(ValueError, match="is 0"):
        layer_decay_groups(network.layer_groups(), 1e-3, decay=0)


def test_a_plan_may_slow_the_early_layers(tmp_path: Path) -> None:
    moved = {}
    for decay in (1.0, 0.1):
        network = small_unetr()
        before = network.encoder.patch_embed.proj.weight.detach().clone()
        plan = FinetuningPlan(crop=(16, 16, 16), steps=3, layer_decay=decay)
        finetuning.finetune([cube_scan()], network, plan=plan, device=CPU, folder=tmp_path, report=Reporter(quiet=True))
        moved[decay] = float((network.encoder.patch_embed.proj.weight.detach() - before).abs().mean())
    assert moved[0.1] < 1e-2 * moved[1.0]


def test_a_frozen_encoder_stays_as_it_is(tmp_path: Path) -> None:
    network = small_unetr()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plan = FinetuningPlan(crop=(16, 16, 16), steps=3, encoder_rate=0.0)
    finetuning.finetune([cube_scan()], network, plan=plan, device=CPU, folder=tmp_path, report=Reporter(quiet=True))
    moved = {name for name, value in network.state_dict().items() if not value.equal(before[name])}
    assert moved
    assert not any(name.startswith("encoder.") for name in moved)


# -- the budget --------------------------------------------------------------------------------------------------------


class Time:
    """A clock that steps move on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Listening(Reporter):
    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.metrics: dict[str, float | None] = {}

    def metric(self, name: str, value: float | None, **values: Any) -> None:
        self.metrics[name] = value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(time_budget.time, "monotonic", clock.monotonic)
    return clock


def test_the_probe_is_not_fooled_by_single_slow_steps(clock: Time) -> None:
    took = [9.0, 3.0, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 1.4, 0.1, 0.1]
    taken = []

    def step(index: int) -> None:
        taken.append(index)
        clock.now += took[index] if index < len(took) else 0.1

    pace = time_budget.time_steps(step, device=CPU)
    assert pace.seconds == pytest.approx(0.1)
    assert pace.fastest == pytest.approx(0.1)
    assert pace.spent == pytest.approx(sum(took[: len(taken)]))
    assert taken == list(range(len(taken)))
    assert pace.steps_in(100.0) == round((100 - pace.spent) / 0.1)
    assert pace.steps_in(0.5) == 20


def test_the_probe_takes_but_a_share_of_the_budget(clock: Time) -> None:
    taken = []

    def step(index: int) -> None:
        taken.append(index)
        clock.now += 2.0

    pace = time_budget.time_steps(step, device=CPU, budget=60)
    assert pace.seconds == pytest.approx(2.0)
    assert len(taken) == 4
    assert pace.steps_in(60) == 26


def learn(monkeypatch: pytest.MonkeyPatch, clock: Time, seconds_a_step: Any, **plan: Any) -> Any:
    """A run whose steps take what `seconds_a_step(index of the call)` says."""
    true_step, calls = finetuning._step, []

    def step(*args: Any, **options: Any) -> float:
        clock.now += seconds_a_step(len(calls))
        calls.append(options["step"])
        return true_step(*args, **options)

    monkeypatch.setattr(finetuning, "_step", step)
    monkeypatch.setattr(finetuning, "_CHECKPOINT_SECONDS", 1e9)
    report = Listening()
    settings = {"crop": (16, 16, 16), **plan}
    result = finetuning.finetune(
        [cube_scan()],
        small_unetr(),
        plan=FinetuningPlan(**settings),
        device=CPU,
        folder=Path("unused"),
        report=report,
    )
    return result, report, calls


def test_a_budget_is_kept_and_told_before(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    result, report, _ = learn(monkeypatch, clock, lambda call: 1.0, seconds=50.0)
    assert (
        result.steps == result.planned == 50 - 6
    )  # a probe of two and four steps: a tenth of the budget, and the step that passed it
    assert report.metrics["expected_seconds"] == pytest.approx(44.0)
    assert (report.metrics["expected_bytes"] or 1) > 0
    assert report.warnings == []


def test_a_machine_that_slows_down_is_told_and_stopped(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    result, report, _ = learn(monkeypatch, clock, lambda call: 1.0 if call < 20 else 3.0, seconds=50.0)
    assert result.planned == 44
    assert result.steps == 31  # 14 s, and 17 steps of 3 s: 65 s is the first beyond 62.5
    assert 62.5 < result.seconds <= 65.5
    assert [warning["code"] for warning in report.warnings] == ["slower_than_planned", "budget_passed"]
    assert torch.isfinite(result.network(torch.rand(1, 1, 16, 16, 16))).all()


def test_steps_are_steps_however_long_they_take(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    result, report, calls = learn(monkeypatch, clock, lambda call: 100.0, steps=8, seconds=50.0)
    assert (result.steps, calls, report.warnings) == (8, list(range(8)), [])


def test_a_long_run_of_steps_is_told_before(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "_TIMED_STEPS", 10)
    alone, _, _ = learn(monkeypatch, clock, lambda call: 1.0, steps=9)
    monkeypatch.setattr(finetuning, "_TIMED_STEPS", 9)
    told, report, _ = learn(monkeypatch, clock, lambda call: 1.0, steps=9)
    assert report.metrics["expected_seconds"] == pytest.approx(9.0, abs=9.1)
    assert told.losses == alone.losses  # the probe leaves no trace


# -- the paper's schedule and shares of a data set ---------------------------------------------------------------------


def test_shares_lie_within_each_other() -> None:
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


def test_a_share_is_of_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--share"):
        FinetuneConfig(image=("a.nii",), label=(Path("b.nii"),), output=tmp_path, share=10)


def test_the_papers_schedule() -> None:
    plan = paper_recipe.paper_plan(crop=(96, 96, 96), cases=1)
    assert (plan.steps, plan.batch_size, plan.learning_rate, plan.encoder_rate) == (5000, 4, 1e-4, 1e-4)
    assert (plan.weight_decay, plan.clip, plan.warm_up * 5000) == (1e-5, None, 50)
    ten = paper_recipe.paper_plan(crop=(96, 96, 96), cases=24, share=10)
    assert (ten.steps, round(ten.warm_up * 2000 * 24)) == (2000 * 24, 50 * 24)
    assert paper_recipe.paper_plan(crop=(96, 96, 96), cases=1, steps=10).steps == 10
    preset = presets.choose_preset("paper-one-shot", CPU)
    assert (preset.variant, preset.batch_size, preset.spacing) == ("hi_end_mae_vit_large_12p", 4, (1.5, 1.5, 1.5))


def test_the_papers_crops() -> None:
    """Half around labelled voxels, four of one volume at a time, inside the scan, and changed by place voxel for voxel."""
    scan = cube_scan()
    scan = TrainingCase("small", scan.image, torch.where(scan.classes == 1, 0, scan.classes))  # the ball
    method = paper_recipe.PaperRecipe([scan, scan, scan], seed=0)
    draws = [method.draw(index, (8, 8, 8)) for index in range(1200)]
    for epoch in range(3):
        volumes = [draws[12 * epoch + 4 * place][0] for place in range(3)]
        assert sorted(volumes) == [0, 1, 2]
        assert all(draws[12 * epoch + 4 * place + part][0] == volumes[place] for place in range(3) for part in range(4))
    centers = np.array([center for _, center, _ in draws])
    assert centers.min() >= 3.5
    assert centers.max() <= 23.5
    near = np.linalg.norm(centers - np.array([18.5, 18.5, 13.5]), axis=1) < 6.5
    assert 0.45 < near.mean() < 0.62
    changes = [change for _, _, change in draws]
    flips = np.array([np.linalg.det(change.matrix) < 0 for change in changes])
    assert abs(flips.mean() - 3 * 0.2 * 0.64 - 0.008) < 0.06  # an odd number of three flips
    turned = np.mean([abs(change.matrix[0, 0]) < 0.5 or abs(change.matrix[1, 0]) > 0.5 for change in changes])
    assert abs(turned - 0.2 * 2 / 3) < 0.04  # half turns are told apart from flips by nobody
    assert abs(np.mean([change.gain != 1 for change in changes]) - 0.1) < 0.03
    _, center, change = next(draw for draw in draws if draw[2].gain == 1 and abs(draw[2].matrix[0, 0]) < 0.5)
    crop, _ = augmentation.crop_augmented(scan.image, scan.classes, center, (8, 8, 8), change)
    values = set(np.round(scan.image.numpy().ravel(), 3))
    assert set(np.round((crop - change.shift).numpy().ravel(), 3)) <= values  # nothing was interpolated


def test_the_papers_recipe_learns(tmp_path: Path) -> None:
    scan = cube_scan()
    plan = paper_recipe.paper_plan(crop=(16, 16, 16), cases=1, steps=12)
    assert (plan.ema, plan.batch_size) == (0.0, 4)
    network = small_unetr()
    result = finetuning.finetune(
        [scan],
        network,
        plan=plan,
        device=CPU,
        folder=tmp_path,
        report=Reporter(quiet=True),
        method=paper_recipe.PaperRecipe([scan], seed=0),
    )
    assert result.losses[-1][1] < result.losses[0][1]
    # No average: what is kept are the last weights.
    for one, other in zip(result.network.parameters(), network.parameters()):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)

"""Both loops on small networks: they learn, they are keyed, they stop and go on as promised."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from HiEndMAECore.data.crop_store import CropStore
from HiEndMAECore.data.label_table import read_structures
from HiEndMAECore.data.store_writer import write_manifest, write_scan
from HiEndMAECore.errors import Cancelled, HiEndMAEError, InputError
from HiEndMAECore.networks import UNETR, HiEndMAE
from HiEndMAECore.networks.hi_end_mae import normalize_patches
from HiEndMAECore.networks.layers.patches import gather_tokens, patchify
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import augmentation, finetuning, pretraining
from HiEndMAECore.training.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from HiEndMAECore.training.crop_sampling import CropSampler, draw_start, scan_index
from HiEndMAECore.training.foreground_sampling import ForegroundSampler
from HiEndMAECore.training.monitor import nearest_visible_patch
from HiEndMAECore.training.optimizer import build_adamw, weight_decay_groups
from HiEndMAECore.training.plans import FinetuningPlan, PretrainingPlan
from HiEndMAECore.training.schedule import cosine_schedule
from HiEndMAECore.training.training_cases import TrainingCase
from HiEndMAECore.training.training_log import read_log

CPU = torch.device("cpu")
ADAMW: dict[str, Any] = {"learning_rate": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.0}


class StopAt(Reporter):
    """A reporter to which somebody says `word` once `step` steps are done."""

    def __init__(self, step: int, word: str) -> None:
        super().__init__(quiet=True)
        self.step, self.word = step, word

    def progress(self, stage: str, step: int, total: int, **values: object) -> None:
        if step == self.step and self.word == "finish":
            self.request_finish()
        if step == self.step and self.word == "cancel":
            self.cancel()
        super().progress(stage, step, total, **values)


@pytest.fixture
def store(tmp_path: Path) -> CropStore:
    rng = np.random.default_rng(0)
    scans = []
    for index, shape in enumerate([(20, 24, 18), (10, 30, 16), (16, 16, 16)]):
        x, y, z = np.meshgrid(*(np.linspace(0, 6, n) for n in shape), indexing="ij")
        array = np.clip(0.5 + 0.4 * np.sin(x + index) * np.cos(y) * np.sin(z) + rng.normal(0, 0.02, shape), 0, 1)
        array[:, :4] = 0  # air
        scans.append(write_scan(tmp_path / "store", f"scan{index}", array[None].astype(np.float32)))
    write_manifest(tmp_path / "store", {"scans": scans, "channels": 1, "preparation": {}})
    return CropStore.open(tmp_path / "store")


def small_mae(seed: int = 0) -> HiEndMAE:
    torch.manual_seed(seed)
    return HiEndMAE(
        image_size=(16, 16, 16),
        patch_size=4,
        encoder_dim=24,
        encoder_depth=4,
        encoder_heads=2,
        decoder_dim=12,
        decoder_heads=2,
    )


def pretrain(
    store: CropStore,
    folder: Path,
    model: HiEndMAE,
    report: Reporter | None = None,
    *,
    resume: bool = False,
    **plan: Any,
) -> pretraining.PretrainingResult:
    settings = {"steps": 12, "batch_size": 4, "learning_rate": 3e-3, "snapshot_minutes": 1e9, **plan}
    report = report or Reporter(quiet=True)
    options: dict[str, Any] = {"plan": PretrainingPlan(**settings), "device": CPU, "folder": folder}
    return pretraining.pretrain(store, model, report=report, resume=resume, **options)


def sampler(store: CropStore, seed: int = 1) -> CropSampler:
    return CropSampler(store, (16, 16, 16), 64, seed)


def test_samples_depend_on_seed_and_index_alone(store: CropStore) -> None:
    sample, again = sampler(store).draw(5), sampler(store).draw(5)
    assert torch.equal(sample.on(CPU)[0], again.on(CPU)[0])
    assert torch.equal(sample.permutation, again.permutation)
    for other in (sampler(store).draw(6), sampler(store, seed=2).draw(5)):
        assert not torch.equal(sample.on(CPU)[0], other.on(CPU)[0])
        assert not torch.equal(sample.permutation, other.permutation)
    assert sorted(sample.permutation[0].tolist()) == list(range(64))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_threads_read_what_one_reads_in_the_same_order(store: CropStore, workers: int) -> None:
    parts = [range(first, first + 3) for first in range(0, 30, 3)]
    read = list(sampler(store).batches(iter(parts), workers=workers, pinned=False))
    for part, batch in zip(parts, read, strict=True):
        alone = torch.cat([sampler(store).draw(index).on(CPU)[0] for index in part])
        assert torch.equal(batch.on(CPU)[0], alone)


def test_changes_turn_padding_and_scan_alike(store: CropStore) -> None:
    """What lies outside the scan stays 0 but for a shift of intensity, whatever the flips and turns."""
    padded = [sampler(store).draw(index) for index in range(60)]
    padded = [sample for sample in padded if sample.inside is not None]
    assert len(padded) > 10
    for sample in padded:
        volume, _, inside = sample.on(CPU)
        assert inside is not None
        assert 0 < inside.float().mean() < 1
        assert torch.allclose(volume[~inside], torch.tensor(sample.flips[0].shift))


def test_padding_is_not_a_target() -> None:
    model = small_mae().eval()
    volume, order = torch.rand(2, 1, 16, 16, 16), model.random_masking(2)
    inside = torch.ones(2, 1, 16, 16, 16, dtype=torch.bool)
    whole = model(volume, order)
    assert torch.allclose(model(volume, order, inside).loss, whole.loss, atol=1e-6)
    hidden = int(order[0, -1])  # a masked patch of the first crop that lies in padding as a whole
    h, w, d = hidden // 16 * 4, hidden // 4 % 4 * 4, hidden % 4 * 4
    inside[0, :, h : h + 4, w : w + 4, d : d + 4] = False
    target = normalize_patches(patchify(volume, 4))
    errors = (whole.prediction - gather_tokens(target, order[:, model.visible :])) ** 2
    expected = (errors[0, :-1].mean() + errors[1].mean()) / 2
    assert torch.allclose(model(volume, order, inside).loss, expected, atol=1e-6)
    assert not torch.allclose(expected, whole.loss, atol=1e-5)


def test_padding_in_a_patch_does_not_shape_its_target() -> None:
    """Half of a patch is padding: mean and spread are those of the other half, whatever the padding holds."""
    torch.manual_seed(0)
    patches, counted = torch.rand(3, 2, 64), torch.ones(3, 2, 64)
    torch.testing.assert_close(normalize_patches(patches, counted), normalize_patches(patches), atol=1e-5, rtol=1e-5)
    counted[..., 32:] = 0
    target = normalize_patches(patches, counted)[..., :32]
    torch.testing.assert_close(target, normalize_patches(patches[..., :32]), atol=1e-5, rtol=1e-5)
    assert torch.equal(normalize_patches(patches * 0, counted * 0), patches * 0)  # a patch of nothing but padding


def test_every_lap_takes_eight_crops_of_every_scan_in_an_order_of_its_own() -> None:
    laps = [[scan_index(index, 10, 0) for index in range(lap * 80, lap * 80 + 80)] for lap in range(3)]
    assert all(sorted(lap) == sorted([*range(10)] * 8) for lap in laps)
    assert laps[0] != laps[1] != laps[2]
    assert len(set(laps[0][:8])) > 3  # a small batch sees several scans


def test_a_small_scan_is_padded_with_air(store: CropStore) -> None:
    crop = store.crop(1, start=(-3, 0, 0), size=(16, 16, 16))
    assert crop.shape == (1, 16, 16, 16)
    assert not crop[:, :3].any()
    assert not crop[:, 13:].any()
    assert crop[:, 3:13, 4:].all()


def test_positive_crops_hold_tissue(store: CropStore) -> None:
    rng = np.random.default_rng(0)
    starts = np.array([draw_start(store, 0, (4, 4, 4), rng) for _ in range(400)])
    tissue = [store.crop(0, start=start, size=(4, 4, 4)).any() for start in starts]
    assert np.mean(tissue) > 0.8  # 3 of 4 by design, and some of the rest by chance
    assert (starts >= 0).all()
    assert (starts + 4 <= store.shape(0)).all()


def test_pretraining_learns(store: CropStore, tmp_path: Path) -> None:
    result = pretrain(store, tmp_path, small_mae())
    losses = [loss for _, loss in result.losses]
    assert result.steps == 12
    assert np.mean(losses[-3:]) < 0.9 * losses[0]


def test_a_stopped_pretraining_goes_on_as_if_never_stopped(store: CropStore, tmp_path: Path) -> None:
    whole = small_mae()
    uninterrupted = pretrain(store, tmp_path / "a", whole)
    with pytest.raises(Cancelled):
        pretrain(store, tmp_path / "b", small_mae(), StopAt(5, "cancel"))
    resumed = small_mae(seed=9)  # its own start does not matter
    result = pretrain(store, tmp_path / "b", resumed, resume=True)
    assert result.losses == uninterrupted.losses
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters()))


def test_a_loss_that_is_not_finite_stops_and_names_the_scans(store: CropStore, tmp_path: Path) -> None:
    model = small_mae()
    with torch.no_grad():
        model.decoder.head.bias.fill_(float("inf"))
    with pytest.raises(HiEndMAEError, match=r"at step 1, on the scans scan\d"):
        pretrain(store, tmp_path / "run", model)


def test_the_state_before_a_bad_step_is_kept(store: CropStore, tmp_path: Path) -> None:
    model = small_mae()
    good: dict[str, torch.Tensor] = {}

    class Keep(StopAt):
        def progress(self, stage: str, step: int, total: int, **values: object) -> None:
            if step == 3:  # three steps are taken; the fourth's gradients are computed, and bad
                good.update({name: value.clone() for name, value in model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        crop = CropStore.crop
        calls = iter(range(10**6))

        def spoilt(self: CropStore, index: int, **where: Any) -> np.ndarray:
            value = crop(self, index, **where)
            return value * np.nan if next(calls) >= 32 + 12 else value  # 32 watched crops, 3 steps of 4

        patch.setattr(CropStore, "crop", spoilt)
        with pytest.raises(HiEndMAEError, match=r"The loss was nan at step 4") as caught:
            pretrain(store, tmp_path, model, Keep(99, ""), workers=0)
    assert caught.value.code == "loss_not_finite"
    kept = newest_checkpoint(tmp_path, on_damage=lambda error: pytest.fail(str(error)))
    assert kept is not None
    assert kept.name == "step-00000003.safetensors"
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert all(torch.equal(good[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "options", [{"accumulate": 2}, {"recompute": True}, {"workers": 0}, {"precision": "fp32", "accumulate": 4}]
)
def test_how_a_step_is_computed_does_not_change_it(store: CropStore, tmp_path: Path, options: dict[str, Any]) -> None:
    plain = pretrain(store, tmp_path / "a", small_mae(), precision="fp32")
    other = pretrain(store, tmp_path / "b", small_mae(), **{"precision": "fp32", **options})
    assert [loss for _, loss in other.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_as_well(store: CropStore, tmp_path: Path, precision: str) -> None:
    exact = pretrain(store, tmp_path / "a", small_mae(), precision="fp32")
    other = pretrain(store, tmp_path / "b", small_mae(), precision=precision)
    assert other.losses[-1][1] == pytest.approx(exact.losses[-1][1], rel=0.1)
    assert other.losses != exact.losses


def test_a_stopped_fp16_run_goes_on_as_if_never_stopped(store: CropStore, tmp_path: Path) -> None:
    whole = pretrain(store, tmp_path / "a", small_mae(), precision="fp16")
    with pytest.raises(Cancelled):
        pretrain(store, tmp_path / "b", small_mae(), StopAt(5, "cancel"), precision="fp16")
    assert pretrain(store, tmp_path / "b", small_mae(), precision="fp16", resume=True).losses == whole.losses


def test_clipping_bounds_the_step(store: CropStore, tmp_path: Path) -> None:
    model = small_mae()
    pretrain(store, tmp_path, model, clip=1e-12, weight_decay=0.0)
    # Adam divides by the gradients' size: only its eps of 1e-8 makes steps of such gradients small.
    moved = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), small_mae().parameters()))
    assert moved < 1e-4


def test_only_the_newest_snapshots_stay_and_a_damaged_one_is_passed_over(store: CropStore, tmp_path: Path) -> None:
    whole = pretrain(store, tmp_path, small_mae(), snapshot_minutes=0, keep=3)
    kept = sorted(path.name for path in (tmp_path / "snapshots").iterdir())
    assert kept == [f"step-{step:08d}.safetensors" for step in (10, 11, 12)]
    newest = tmp_path / "snapshots" / kept[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with StopAt(99, "") as report:
        again = pretrain(store, tmp_path, small_mae(seed=7), report, resume=True)
    assert [warning["code"] for warning in report.warnings] == ["snapshot_damaged"]
    assert again.losses == whole.losses


def test_the_log_tells_every_step_and_what_to_beat(store: CropStore, tmp_path: Path) -> None:
    result = pretrain(store, tmp_path, small_mae())
    lines = read_log(tmp_path)
    assert 0.2 < lines[0]["zero_loss"] < 1.01  # constant patches count as 0
    assert lines[0]["nearest_loss"] > 0
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert lines[-1]["watch_loss"] == result.watched[-1][1]
    assert 0 <= max(record.waited for record in result.records) <= 1


def test_tensorboard_holds_what_the_log_holds(store: CropStore, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = pretrain(store, tmp_path, small_mae(), tensorboard=True)
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 13))
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([loss for _, loss in result.losses])


def test_a_compiled_network_trains_to_the_same_loss(
    store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole step is traced; the code it is turned into is torch's affair (and takes a C++ compiler a minute)."""
    plain = pretrain(store, tmp_path / "a", small_mae(), precision="fp32", steps=3)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    compiled = pretrain(store, tmp_path / "b", small_mae(), precision="fp32", steps=3, compile=True)
    assert [loss for _, loss in compiled.losses] == pytest.approx([loss for _, loss in plain.losses], rel=1e-4)


def test_the_nearest_visible_patch_is_found() -> None:
    seen, hidden = torch.tensor([[0, 63]]), torch.tensor([[1, 62, 21, 47]])  # a grid of 4 x 4 x 4
    assert nearest_visible_patch(seen, hidden, (4, 4, 4)).tolist() == [[0, 63, 0, 63]]


def test_a_snapshot_of_another_network_is_refused(store: CropStore, tmp_path: Path) -> None:
    pretrain(store, tmp_path, small_mae())
    other = HiEndMAE(
        image_size=(16, 16, 16),
        patch_size=8,
        encoder_dim=24,
        encoder_depth=4,
        encoder_heads=2,
        decoder_dim=12,
        decoder_heads=2,
    )
    with pytest.raises(InputError, match="belongs to another network"):
        pretrain(store, tmp_path, other, resume=True)


def test_only_the_same_run_goes_on(store: CropStore, tmp_path: Path) -> None:
    """Other groups of parameters would get each other's moments, of other shapes; another store is another run."""
    pretrain(store, tmp_path, small_mae(), steps=3)
    with pytest.raises(InputError, match="belongs to another network"):
        pretrain(store, tmp_path, small_mae(), resume=True, decay_all=False)
    write_manifest(store.path, {**store.manifest, "scans": store.manifest["scans"][1:]})
    with pytest.raises(InputError, match="a store of other scans"):
        pretrain(CropStore.open(store.path), tmp_path, small_mae(), resume=True)


def test_a_bad_gradient_spoils_no_snapshot(store: CropStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss was a number, the step made the weights none: what is kept is the state of before."""
    update, steps = pretraining._Loop.update, iter(range(100))

    def spoil(self: Any) -> None:
        if next(steps) == 2:
            self.model.mask_token.grad.fill_(float("nan"))
        update(self)

    monkeypatch.setattr(pretraining._Loop, "update", spoil)
    with pytest.raises(HiEndMAEError, match="The loss was nan at step 4") as caught:
        pretrain(store, tmp_path, small_mae(), snapshot_minutes=0.0)
    assert "step-00000002" in caught.value.advice
    kept = newest_checkpoint(tmp_path, on_damage=lambda error: pytest.fail(str(error)))
    assert kept is not None
    load_checkpoint(kept, {"model": (model := small_mae())}, build_adamw(model.parameters(), **ADAMW))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_groups_are_as_they_were_where_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.2 and 2.3 refuse fused AdamW on a CPU only after they have written it into the groups (a stand-in)."""

    class Old(torch.optim.AdamW):
        def __init__(self, groups: Any, *, fused: bool = False, **arguments: Any) -> None:
            super().__init__(groups, fused=fused, **arguments)
            if fused:
                raise RuntimeError("`fused=True` requires all the params to be on CUDA")

    monkeypatch.setattr(torch.optim, "AdamW", Old)
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": 1e-2}]
    assert not build_adamw(groups, **ADAMW).param_groups[0]["fused"]


def test_weight_decay_may_spare_norms_and_biases() -> None:
    model = small_mae()
    decayed, spared = weight_decay_groups(model, 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    assert all(parameter.ndim == 1 for parameter in spared["params"])


def test_rates_rise_and_fall() -> None:
    rates = [cosine_schedule(step, 100, warm_up=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)  # never a step at rate zero
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 1e-3


# -- fine-tuning -----------------------------------------------------------------------------------------------------


def cube_scan() -> TrainingCase:
    """A bright cube and a dark ball in grey tissue, 28 voxels a side."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(28.0)] * 3, indexing="ij"))
    classes = torch.zeros(28, 28, 28, dtype=torch.int16)
    classes[5:14, 6:15, 8:17] = 1
    classes[(grid - torch.tensor([19.0, 19, 14])[:, None, None, None]).square().sum(0) < 36] = 2
    noise = torch.randn(28, 28, 28, generator=torch.Generator().manual_seed(0))
    image = torch.tensor([0.5, 0.9, 0.15])[classes.long()] + 0.03 * noise
    return TrainingCase("cube", image[None], classes)


def small_unetr() -> UNETR:
    torch.manual_seed(0)
    return UNETR(
        image_size=(16, 16, 16),
        patch_size=8,
        classes=3,
        encoder_dim=24,
        encoder_depth=4,
        encoder_heads=2,
        feature_size=8,
    )


def finetune(folder: Path, report: Reporter | None = None, **options: object) -> finetuning.FinetuningResult:
    plan = FinetuningPlan(**{"crop": (16, 16, 16), "steps": 60, "learning_rate": 5e-3, **options})  # type: ignore[arg-type]
    report = report or Reporter(quiet=True)
    return finetuning.finetune([cube_scan()], small_unetr(), plan=plan, device=CPU, folder=folder, report=report)


def test_fine_tuning_learns_every_structure(tmp_path: Path) -> None:
    scan = cube_scan()
    network = finetune(tmp_path).network
    with torch.no_grad():
        found = network(scan.image[None, :, :24, :24, :24]).argmax(1)[0]
    truth = scan.classes[:24, :24, :24]
    for value in (1, 2):
        overlap = 2 * ((found == value) & (truth == value)).sum() / ((found == value).sum() + (truth == value).sum())
        assert overlap > 0.7, f"structure {value}: Dice {float(overlap):.2f}"


def test_same_seed_same_model_other_seed_another(tmp_path: Path) -> None:
    one, same, other = (finetune(tmp_path, steps=3, seed=seed) for seed in (0, 0, 1))
    assert one.losses == same.losses
    assert one.losses != other.losses
    assert all(torch.equal(a, b) for a, b in zip(one.network.parameters(), same.network.parameters()))


def test_a_killed_fine_tuning_goes_on_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetuning, "_CHECKPOINT_SECONDS", 0.0)  # a snapshot after every step
    whole = finetune(tmp_path / "a", steps=8)
    with pytest.raises(Cancelled):
        finetune(tmp_path / "b", StopAt(5, "cancel"), steps=8)
    plan = FinetuningPlan(crop=(16, 16, 16), steps=8, learning_rate=5e-3)
    resumed = finetuning.finetune(
        [cube_scan()],
        small_unetr(),
        plan=plan,
        device=CPU,
        folder=tmp_path / "b",
        report=Reporter(quiet=True),
        resume=True,
    )
    assert resumed.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), resumed.network.parameters()))


@pytest.mark.parametrize("other", ["seed", "steps", "labels", "scan"])
def test_a_snapshot_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    monkeypatch.setattr(finetuning, "_CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Cancelled):
        finetune(tmp_path, StopAt(3, "cancel"), steps=6)
    plan = {
        "crop": (16, 16, 16),
        "steps": 6,
        "learning_rate": 5e-3,
        **({other: 7} if other in ("seed", "steps") else {}),
    }
    scan = cube_scan()
    if other in ("labels", "scan"):
        (scan.classes if other == "labels" else scan.image[0])[0, 0, 0] = 1
    with pytest.raises(InputError, match="other scans, labels or settings"):
        finetuning.finetune(
            [scan], small_unetr(), plan=FinetuningPlan(**plan), device=CPU, folder=tmp_path,  # type: ignore[arg-type]
            report=Reporter(quiet=True), resume=True,
        )  # fmt: skip


def test_a_snapshot_can_be_replaced_while_its_run_goes_on(tmp_path: Path) -> None:
    """Windows refuses to replace a file that is mapped into memory: nothing of it may be, once it is loaded."""
    network, path = small_unetr(), tmp_path / "kept.safetensors"
    optimizer = build_adamw(network.parameters(), **ADAMW)
    network(torch.rand(1, 1, 16, 16, 16)).sum().backward()
    optimizer.step()
    save_checkpoint(path, {"network": network}, optimizer, {"step": 1})
    load_checkpoint(path, {"network": network}, optimizer)
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs Linux' list of mapped files")
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_finish_ends_early_with_a_usable_network(tmp_path: Path) -> None:
    result = finetune(tmp_path, StopAt(4, "finish"), steps=50)
    assert (result.steps, result.planned) == (4, 50)
    assert torch.isfinite(result.network(torch.rand(1, 1, 16, 16, 16))).all()


def test_a_budget_becomes_steps_once(tmp_path: Path) -> None:
    result = finetune(tmp_path, steps=None, seconds=3.0)
    assert result.planned >= 20
    assert result.steps == result.planned or result.seconds > 1.25 * 3.0  # another process may take the machine


def test_a_crop_without_changes_is_the_scan_itself() -> None:
    scan = cube_scan()
    image, classes = augmentation.crop_augmented(
        scan.image, scan.classes, np.array([11.5, 13.5, 9.5]), (8, 8, 8), augmentation.IDENTITY
    )
    torch.testing.assert_close(image, scan.image[:, 8:16, 10:18, 6:14], atol=1e-5, rtol=1e-5)
    assert torch.equal(classes, scan.classes[8:16, 10:18, 6:14])


def test_a_turned_crop_turns_the_right_way() -> None:
    image = torch.zeros(1, 21, 21, 21)
    image[0, 15, 10, 10] = 1  # five voxels along the first axis
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    change = augmentation.Augmentation(quarter, np.zeros((3, 4, 4, 4)), 1.0, 0.0, 1.0, 0.0, 0.0, 0)
    crop, _ = augmentation.crop_augmented(image, image[0], np.array([10.0, 10, 10]), (21, 21, 21), change)
    # offset o of the crop shows offset quarter @ o of the scan: (0, -5, 0) -> (5, 0, 0)
    assert tuple(int(place) for place in np.unravel_index(int(crop[0].argmax()), (21, 21, 21))) == (10, 5, 10)


def test_outside_the_scan_is_air_and_background() -> None:
    scan = cube_scan()
    image, classes = augmentation.crop_augmented(
        scan.image, scan.classes, np.array([-20.0, 0, 0]), (8, 8, 8), augmentation.IDENTITY
    )
    assert not image.any()
    assert not classes.any()


def test_changes_keep_the_labels_on_the_structures() -> None:
    scan = cube_scan()
    for index in range(10):
        rng = augmentation.sample_generator(0, index)
        change = augmentation.draw_augmentation(rng, (24, 24, 24))
        plain = augmentation.Augmentation(change.matrix, change.bend, 1.0, 0.0, 1.0, 0.0, 0.0, 0)
        image, classes = augmentation.crop_augmented(
            scan.image, scan.classes, np.array([13.5] * 3), (24, 24, 24), plain
        )
        assert float(image[0][classes == 1].mean()) > 0.8
        assert float(image[0][classes == 2].mean()) < 0.25


def test_crops_are_centred_on_every_structure() -> None:
    scan = cube_scan()
    centers = ForegroundSampler([scan], seed=0)
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(300):
        _, center = centers.draw(rng, (0, 0, 0))  # without the random move
        counts[int(scan.classes[tuple(center.astype(int))])] += 1
    assert counts.min() > 50


def test_names_bring_colours_and_terminology(tmp_path: Path) -> None:
    """A list as in model.json: what the teacher drew in red comes back in red, under its code."""
    liver = {"type": {"CodingSchemeDesignator": "SCT", "CodeValue": "10200004", "CodeMeaning": "Liver"}}
    records = [
        {"value": 4, "name": "Milz", "colour": [255, 0, 7]},
        {"value": 2, "name": "Leber", "colour": [1, 2, 3], "terminology": liver},
    ]
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"labels": records}), encoding="utf-8")
    first, second = read_structures(file)
    assert (first.value, first.name, first.color, first.terminology) == (2, "Leber", (1, 2, 3), liver)
    assert (second.value, second.name, second.color, second.terminology) == (4, "Milz", (255, 0, 7), {})
    file.write_text(json.dumps({"labels": {"Leber": 2}}), encoding="utf-8")
    assert read_structures(file)[0].name == "Leber"
    for wrong in ({"colour": [1, 2]}, {"colour": [1, 2, 300]}, {"terminology": "liver"}):
        file.write_text(json.dumps({"labels": [{"value": 1, "name": "x", **wrong}]}), encoding="utf-8")
        with pytest.raises(InputError, match="'x'"):
            read_structures(file)


def test_previews_lie_on_the_scans_own_grid_and_change_nothing(tmp_path: Path) -> None:
    """Same seed, same model, whether somebody looks on or not; what they see is where the scan is."""
    import nibabel as nib
    from HiEndMAECore.volumes.geometry import Geometry

    from HiEndMAECore.io.structure import Structure
    from HiEndMAECore.preprocessing.pipeline import NetworkGrid
    from HiEndMAECore.training.preview import Preview

    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    finer = np.array([[0.0, -1, 0, 55], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # turned, with half the edge
    grid = NetworkGrid(affine, Geometry((56, 56, 56), finer))
    structures = [Structure(5, "cube", (255, 0, 0)), Structure(9, "ball", (0, 255, 0))]
    heard: list[tuple[str, float, int]] = []

    class Listening(Reporter):
        def metric(self, name: str, value: float | None, **values: Any) -> None:
            heard.append((name, value or 0.0, values["step"]))

    def learn(share: float) -> finetuning.FinetuningResult:
        report = Listening(quiet=True)
        looking = Preview(cube_scan(), grid, structures, path=tmp_path / "preview.nii", report=report, share=share)
        plan = FinetuningPlan(crop=(16, 16, 16), steps=40, learning_rate=5e-3)
        return finetuning.finetune(
            [cube_scan()], small_unetr(), plan=plan, device=CPU, folder=tmp_path, report=report, preview=looking
        )

    alone = learn(0.0)
    assert heard == []
    assert not (tmp_path / "preview.nii").exists()
    watched = learn(100.0)
    assert watched.losses == alone.losses
    assert all(torch.equal(a, b) for a, b in zip(alone.network.parameters(), watched.network.parameters()))
    assert [(name, step) for name, _, step in heard] == [("agreement", step) for step in (4, 10, 20, 30)]
    assert heard[-1][1] > 0.5
    shown = nib.load(tmp_path / "preview.nii")
    np.testing.assert_allclose(shown.affine, finer)
    values = np.asarray(shown.dataobj)
    assert set(np.unique(values)) == {0, 5, 9}
    places = np.argwhere(values == 5) @ finer[:3, :3].T + finer[:3, 3]
    np.testing.assert_allclose(places.mean(0), 2 * np.array([9.0, 10, 12]), atol=4)

    # A preview that cannot be written, or a scan of which nothing labelled is left, does not end the run.
    (tmp_path / "preview.nii").unlink()
    (tmp_path / "preview.nii").mkdir()
    report = Reporter(quiet=True)
    bare = cube_scan()
    bare.classes.zero_()
    looking = Preview(bare, grid, structures, path=tmp_path / "preview.nii", report=report)
    looking.look(small_unetr(), step=1, crop=(16, 16, 16), device=CPU)
    assert [warning["code"] for warning in report.warnings] == ["preview_left_out"]

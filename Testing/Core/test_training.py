"""Both loops on small networks: they learn, they are keyed, they stop and go on as promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from HiEndMAECore.errors import Cancelled, HiEndMAEError, InputError
from HiEndMAECore.networks import UNETR, HiEndMAE
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.training import augmentation, finetuning, pretraining, teaching
from HiEndMAECore.training.optimiser import cosine_rate
from HiEndMAECore.volumes import crop_store
from HiEndMAECore.volumes.crop_store import CropStore

CPU = torch.device("cpu")


class StopAt(Reporter):
    """A reporter to which somebody says `word` once `step` steps are done."""

    def __init__(self, step: int, word: str) -> None:
        super().__init__(quiet=True)
        self.step, self.word = step, word

    def progress(self, stage: str, step: int, total: int, **values: object) -> None:
        if step == self.step and self.word == "finish":
            self._finish.set()
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
        scans.append(crop_store.add_scan(tmp_path / "store", f"scan{index}", array[None].astype(np.float32)))
    crop_store.write_manifest(tmp_path / "store", {"scans": scans, "channels": 1, "preparation": {}})
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


def pretrain(store: CropStore, folder: Path, model: HiEndMAE, report: Reporter | None = None, **options: object):
    plan = pretraining.PretrainingPlan(steps=12, batch_size=4, learning_rate=3e-3, snapshot_minutes=1e9)
    report = report or Reporter(quiet=True)
    return pretraining.pretrain(store, model, plan=plan, device=CPU, folder=folder, report=report, **options)  # type: ignore[arg-type]


def test_samples_depend_on_seed_and_index_alone(store: CropStore) -> None:
    options: dict = {"size": (16, 16, 16), "patches": 64}
    crop, order = pretraining.draw_sample(store, 5, seed=1, **options)
    again, order_again = pretraining.draw_sample(store, 5, seed=1, **options)
    assert torch.equal(crop, again)
    assert torch.equal(order, order_again)
    for other in (
        pretraining.draw_sample(store, 6, seed=1, **options),
        pretraining.draw_sample(store, 5, seed=2, **options),
    ):
        assert not torch.equal(crop, other[0])
        assert not torch.equal(order, other[1])
    assert sorted(order.tolist()) == list(range(64))


def test_every_lap_takes_eight_crops_of_every_scan_in_an_order_of_its_own() -> None:
    laps = [[pretraining.scan_of(index, 10, 0) for index in range(lap * 80, lap * 80 + 80)] for lap in range(3)]
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
    starts = np.array([pretraining._draw_start(store, 0, (4, 4, 4), rng) for _ in range(400)])
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
    with pytest.raises(HiEndMAEError, match=r"at step 0, on the scans scan\d"):
        pretrain(store, tmp_path / "run", model)


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


def test_rates_rise_and_fall() -> None:
    rates = [cosine_rate(step, 100, warm_up=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)  # never a step at rate zero
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert (np.diff(rates[10:]) < 0).all()
    assert 0 < rates[-1] < 1e-3


# -- fine-tuning -----------------------------------------------------------------------------------------------------


def cube_scan() -> finetuning.TeachingScan:
    """A bright cube and a dark ball in grey tissue, 28 voxels a side."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(28.0)] * 3, indexing="ij"))
    classes = torch.zeros(28, 28, 28, dtype=torch.int16)
    classes[5:14, 6:15, 8:17] = 1
    classes[(grid - torch.tensor([19.0, 19, 14])[:, None, None, None]).square().sum(0) < 36] = 2
    noise = torch.randn(28, 28, 28, generator=torch.Generator().manual_seed(0))
    image = torch.tensor([0.5, 0.9, 0.15])[classes.long()] + 0.03 * noise
    return finetuning.TeachingScan("cube", image[None], classes)


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
    plan = finetuning.FinetuningPlan(**{"crop": (16, 16, 16), "steps": 60, "learning_rate": 5e-3, **options})  # type: ignore[arg-type]
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
    monkeypatch.setattr(finetuning, "_SNAPSHOT_SECONDS", 0.0)  # a snapshot after every step
    whole = finetune(tmp_path / "a", steps=8)
    with pytest.raises(Cancelled):
        finetune(tmp_path / "b", StopAt(5, "cancel"), steps=8)
    plan = finetuning.FinetuningPlan(crop=(16, 16, 16), steps=8, learning_rate=5e-3)
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


def test_finish_ends_early_with_a_usable_network(tmp_path: Path) -> None:
    result = finetune(tmp_path, StopAt(4, "finish"), steps=50)
    assert (result.steps, result.planned) == (4, 50)
    assert torch.isfinite(result.network(torch.rand(1, 1, 16, 16, 16))).all()


def test_a_budget_becomes_steps_once(tmp_path: Path) -> None:
    result = finetune(tmp_path, steps=None, seconds=3.0)
    assert result.steps == result.planned >= 20


def test_a_crop_without_changes_is_the_scan_itself() -> None:
    scan = cube_scan()
    image, classes = augmentation.cut(
        scan.image, scan.classes, np.array([11.5, 13.5, 9.5]), (8, 8, 8), augmentation.UNCHANGED
    )
    torch.testing.assert_close(image, scan.image[:, 8:16, 10:18, 6:14], atol=1e-5, rtol=1e-5)
    assert torch.equal(classes, scan.classes[8:16, 10:18, 6:14])


def test_a_turned_crop_turns_the_right_way() -> None:
    image = torch.zeros(1, 21, 21, 21)
    image[0, 15, 10, 10] = 1  # five voxels along the first axis
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    change = augmentation.Deformation(quarter, np.zeros((3, 4, 4, 4)), 1.0, 0.0, 1.0, 0.0, 0.0, 0)
    crop, _ = augmentation.cut(image, image[0], np.array([10.0, 10, 10]), (21, 21, 21), change)
    # offset o of the crop shows offset quarter @ o of the scan: (0, -5, 0) -> (5, 0, 0)
    assert tuple(int(place) for place in np.unravel_index(int(crop[0].argmax()), (21, 21, 21))) == (10, 5, 10)


def test_outside_the_scan_is_air_and_background() -> None:
    scan = cube_scan()
    image, classes = augmentation.cut(
        scan.image, scan.classes, np.array([-20.0, 0, 0]), (8, 8, 8), augmentation.UNCHANGED
    )
    assert not image.any()
    assert not classes.any()


def test_changes_keep_the_labels_on_the_structures() -> None:
    scan = cube_scan()
    for index in range(10):
        rng = augmentation.sample_generator(0, index)
        change = augmentation.draw_deformation(rng, (24, 24, 24))
        plain = augmentation.Deformation(change.matrix, change.bend, 1.0, 0.0, 1.0, 0.0, 0.0, 0)
        image, classes = augmentation.cut(scan.image, scan.classes, np.array([13.5] * 3), (24, 24, 24), plain)
        assert float(image[0][classes == 1].mean()) > 0.8
        assert float(image[0][classes == 2].mean()) < 0.25


def test_crops_are_centred_on_every_structure() -> None:
    scan = cube_scan()
    centres = finetuning.CropCentres([scan], seed=0)
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(300):
        _, centre = centres.draw(rng, (0, 0, 0))  # without the random move
        counts[int(scan.classes[tuple(centre.astype(int))])] += 1
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
    first, second = teaching.named_structures(file)
    assert (first.value, first.name, first.colour, first.terminology) == (2, "Leber", (1, 2, 3), liver)
    assert (second.value, second.name, second.colour, second.terminology) == (4, "Milz", (255, 0, 7), {})
    file.write_text(json.dumps({"labels": {"Leber": 2}}), encoding="utf-8")
    assert teaching.named_structures(file)[0].name == "Leber"
    for wrong in ({"colour": [1, 2]}, {"colour": [1, 2, 300]}, {"terminology": "liver"}):
        file.write_text(json.dumps({"labels": [{"value": 1, "name": "x", **wrong}]}), encoding="utf-8")
        with pytest.raises(InputError, match="'x'"):
            teaching.named_structures(file)


def test_previews_lie_on_the_scans_own_grid_and_change_nothing(tmp_path: Path) -> None:
    """Same seed, same model, whether somebody looks on or not; what they see is where the scan is."""
    import nibabel as nib

    from HiEndMAECore.training.previewing import Preview
    from HiEndMAECore.volumes.geometry import Geometry
    from HiEndMAECore.volumes.preparation import Grid
    from HiEndMAECore.volumes.volume import Structure

    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    finer = np.array([[0.0, -1, 0, 55], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # turned, with half the edge
    grid = Grid(affine, Geometry((56, 56, 56), finer))
    structures = [Structure(5, "cube", (255, 0, 0)), Structure(9, "ball", (0, 255, 0))]
    heard: list[tuple[str, float, int]] = []

    class Listening(Reporter):
        def metric(self, name: str, value: float | None, **values: Any) -> None:
            heard.append((name, value or 0.0, values["step"]))

    def learn(share: float) -> finetuning.FinetuningResult:
        report = Listening(quiet=True)
        looking = Preview(cube_scan(), grid, structures, path=tmp_path / "preview.nii", report=report, share=share)
        plan = finetuning.FinetuningPlan(crop=(16, 16, 16), steps=40, learning_rate=5e-3)
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

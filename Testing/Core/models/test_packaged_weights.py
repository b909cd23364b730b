"""The packaged weights are what their card says, reconstruct masked patches, and determine the grid where they suit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from HiEndMAECore.data.labelled_cases import LabelledCase
from HiEndMAECore.data.phantom import make_patient
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.models import catalogue, folder
from HiEndMAECore.models.authors import load_strict
from HiEndMAECore.models.pretrained import PretrainedWeights, read_pretrained
from HiEndMAECore.networks.masking import random_masking
from HiEndMAECore.preprocessing.pipeline import preprocess
from HiEndMAECore.training.objectives.inpainting import Inpainting
from HiEndMAECore.training.presets import PRESETS, choose_architecture, choose_preprocessing


@pytest.fixture(scope="module")
def packaged() -> PretrainedWeights:
    found = read_pretrained(catalogue.DEFAULT_WEIGHTS)
    assert found is not None
    return found


def test_packaged_weights_are_small_and_agree_with_their_card(packaged: PretrainedWeights) -> None:
    path = catalogue.packaged_weights(catalogue.find_entry(catalogue.DEFAULT_WEIGHTS))
    assert path is not None
    assert sum(file.stat().st_size for file in path.iterdir()) < 25e6
    assert {value.dtype for value in packaged.state.values()} == {torch.float16}
    description = folder.read_description(path)
    card = (path / "README.md").read_text(encoding="utf-8")
    assert description.kind == "pretraining"
    assert not description.labels
    assert f"{description.training['steps']:,} steps" in card
    assert f"{description.training['watch_loss']:.4f}" in card
    assert f"{description.training['scans']} CT scans" in card
    assert "must not be used" in card


def test_packaged_weights_reconstruct_masked_patches_of_a_new_patient(packaged: PretrainedWeights) -> None:
    """Their loss is far below that of the mean of the visible patches; an untrained network's is above it."""
    assert packaged.description is not None
    scan, labels = make_patient(5, shape=(110, 90, 80), spacing=(3.0, 3.0, 3.0))
    plan = choose_preprocessing([LabelledCase(scan, labels)], preset=PRESETS["cpu"], spacing=(3.0, 3.0, 3.0))
    array = torch.from_numpy(preprocess(scan, plan, crop=False).array)
    crops = torch.stack([array[:, x : x + 48, 20:68, 16:64] for x in (8, 31, 54)])
    losses = {}
    for trained in (True, False):
        torch.manual_seed(0)
        model = Inpainting(packaged.description.architecture, mask_ratio=0.6).eval()
        if trained:
            load_strict(model.network, {name: value.float() for name, value in packaged.state.items()}, what="weights")
        permutation = random_masking(3, 216, rng=torch.Generator().manual_seed(0))
        with torch.no_grad():
            losses[trained] = float(model(crops, permutation).loss)
    targets = model.targets(crops)
    order = permutation[:, :, None].expand_as(targets)
    shuffled = targets.gather(1, order)
    mean = shuffled[:, : model.visible].mean((1, 2), keepdim=True)
    trivial = float((shuffled[:, model.visible :] - mean).square().mean())
    assert losses[True] < 0.5 * trivial < losses[False]


def make_case(shape: tuple[int, int, int], spacing: float, labelled: int) -> LabelledCase:
    """Return a CT of soft tissue and air, with one structure of `labelled` voxels."""
    grid = Geometry(shape, np.diag([spacing, spacing, spacing, 1.0]))
    scan = np.full((1, *shape), 40.0, np.float32)
    scan[0, -10:] = -1000.0  # air: it is CT
    labels = np.zeros((1, *shape), np.int16)
    labels.flat[:labelled] = 1
    return LabelledCase(Volume(scan, grid), Volume(labels, grid))


@pytest.mark.parametrize(
    ("shape", "spacing", "labelled", "chosen"),
    [
        ((150, 130, 120), 2.0, 5000, 3.0),  # a body: the grid of the weights
        ((40, 40, 40), 1.5, 5000, 1.5),  # a corner of a body, at 3 mm too small for a crop
        ((150, 130, 120), 2.0, 40, 2.0),  # 40 voxels at 2 mm are 12 at 3 mm
        ((50, 50, 50), 8.0, 5000, 8.0),  # far coarser than 3 mm
    ],
)
def test_spacing_of_the_packaged_weights_is_used_where_it_suits(
    packaged: PretrainedWeights, shape: tuple[int, int, int], spacing: float, labelled: int, chosen: float
) -> None:
    plan = choose_preprocessing([make_case(shape, spacing, labelled)], preset=PRESETS["gpu"], initial=packaged)
    assert plan.spacing == pytest.approx((chosen,) * 3)
    given = choose_preprocessing(
        [make_case(shape, spacing, labelled)], preset=PRESETS["gpu"], initial=packaged, spacing=(4, 4, 5)
    )
    assert given.spacing == (4, 4, 5)


def test_mri_keeps_its_own_spacing_and_percentiles(packaged: PretrainedWeights) -> None:
    case = make_case((40, 50, 40), 1.0, 900)
    bright = np.random.default_rng(0).uniform(0, 900, case.scan.array.shape).astype(np.float32)
    plan = choose_preprocessing(
        [LabelledCase(Volume(bright, case.scan.geometry), case.labels)], preset=PRESETS["cpu"], initial=packaged
    )
    assert plan.spacing == (1.0, 1.0, 1.0)
    assert plan.normalization.kind == "percentiles"


def test_network_of_the_packaged_weights_is_trained(packaged: PretrainedWeights) -> None:
    started = choose_architecture(PRESETS["gpu"], packaged, classes=3, channels=2)
    assert started["variant"] == "hi_end_mae_vit_tiny_8p"
    assert started["network"] == "HybridUNETR"
    assert choose_architecture(PRESETS["gpu"], None, classes=3, channels=1)["variant"] == PRESETS["gpu"].variant
    assert choose_architecture(PRESETS["paper-one-shot"], None, classes=3, channels=1)["network"] == "UNETR"

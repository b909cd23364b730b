"""Digital patients are anatomically plausible, reproducible, and differ from one another."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import numpy as np
import pytest

from HiEndMAECore.data.phantom import DEMO_SEEDS, PHANTOM_STRUCTURES, make_patient
from HiEndMAECore.io.volume import Volume

SEEDS = (1, 2, 3, 4)
VALUES = {structure.name: structure.value for structure in PHANTOM_STRUCTURES}
VOLUME_ML = {
    "liver": (400, 2000),
    "spleen": (20, 400),
    "right kidney": (60, 300),
    "left kidney": (60, 300),
    "stomach": (40, 500),
    "aorta": (30, 250),
    "vertebral column": (250, 900),
}
HU = {
    "liver": (75, 125),
    "spleen": (95, 140),
    "right kidney": (120, 220),
    "left kidney": (120, 220),
    "aorta": (150, 320),
    "vertebral column": (140, 400),
}

patient = cache(make_patient)


def copied_dice(source: Volume, target: Volume) -> float:
    """Return the mean Dice over the structures of one label map with another, voxel by voxel."""
    scores = []
    for value in VALUES.values():
        a, b = source.array == value, target.array == value
        scores.append(2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b)))
    return float(np.mean(scores))


def center(labels: Volume, name: str) -> np.ndarray:
    """Return the center of mass of a structure in RAS mm."""
    voxels = np.argwhere(labels.array[0] == VALUES[name])
    return labels.affine[:3, :3] @ voxels.mean(0) + labels.affine[:3, 3]


def test_phantom_of_a_seed_is_reproducible():
    small = {"shape": (40, 36, 32), "spacing": (8.0, 8.0, 9.0)}
    (image, labels), (again, labels_again) = make_patient(7, **small), make_patient(7, **small)
    np.testing.assert_array_equal(image.array, again.array)
    np.testing.assert_array_equal(labels.array, labels_again.array)
    other, _ = make_patient(8, **small)
    assert np.abs(image.array - other.array).mean() > 20


def test_phantom_volumes_are_well_formed():
    image, labels = patient(1)
    assert image.array.shape == labels.array.shape == (1, 112, 96, 96)
    assert image.array.dtype == np.float32
    assert labels.array.dtype == np.uint8
    assert image.geometry.matches(labels.geometry)
    assert image.spacing == (3.0, 3.0, 3.0)
    assert [s.value for s in PHANTOM_STRUCTURES] == list(range(1, len(PHANTOM_STRUCTURES) + 1))
    assert len({s.color for s in PHANTOM_STRUCTURES}) == len(PHANTOM_STRUCTURES)


@pytest.mark.parametrize("seed", SEEDS)
def test_phantom_structures_have_plausible_volume_and_density(seed):
    image, labels = patient(seed)
    assert set(np.unique(labels.array)) == {0, *VALUES.values()}
    for name, (low_ml, high_ml) in VOLUME_ML.items():
        inside = labels.array == VALUES[name]
        volume = np.count_nonzero(inside) * labels.geometry.voxel_ml
        assert low_ml < volume < high_ml, (name, volume)
        if name in HU:
            low, high = HU[name]
            assert low < np.median(image.array[inside]) < high, (name, np.median(image.array[inside]))
    stomach = image.array[labels.array == VALUES["stomach"]]
    assert (stomach < -500).mean() > 0.03, "gas above the meal"
    assert image.array.min() >= -1024
    assert 300 < image.array.max() < 1500
    np.testing.assert_array_equal(image.array, np.round(image.array))
    assert np.median(image.array[0, :, -4:, :]) < -900, "air in front of the patient"


@pytest.mark.parametrize("seed", SEEDS)
def test_phantom_organs_lie_in_their_places(seed):
    _, labels = patient(seed)
    at = {name: center(labels, name) for name in VALUES}
    right, anterior, superior = 0, 1, 2
    assert at["liver"][right] > at["stomach"][right] > at["spleen"][right]
    assert at["right kidney"][right] > at["vertebral column"][right] > at["left kidney"][right]
    assert at["aorta"][anterior] > at["vertebral column"][anterior]
    assert at["stomach"][anterior] > at["left kidney"][anterior]
    assert at["liver"][superior] > at["right kidney"][superior]


def test_phantom_anatomy_does_not_depend_on_the_grid():
    _, fine = patient(1)
    _, coarse = make_patient(1, shape=(56, 48, 48), spacing=(6.0, 6.0, 6.0))
    for name in ("liver", "left kidney", "vertebral column"):
        apart = np.linalg.norm(center(fine, name) - center(coarse, name))
        assert apart < 4, (name, apart)  # mm


def test_labels_of_one_demo_patient_do_not_fit_the_other():
    first, second = DEMO_SEEDS
    assert copied_dice(patient(first)[1], patient(second)[1]) < 0.5


def test_labels_of_one_patient_rarely_fit_another():
    pairs = [copied_dice(patient(a)[1], patient(b)[1]) for a, b in combinations(SEEDS, 2)]
    assert np.mean(np.array(pairs) < 0.5) > 0.8, pairs


@pytest.mark.parametrize("wrong", [{"shape": (64, 64)}, {"shape": (64, 64, 2)}, {"spacing": (3.0, 0.0, 3.0)}])
def test_phantom_on_an_impossible_grid_is_refused(wrong):
    with pytest.raises(ValueError, match=r"shape|spacing"):
        make_patient(1, **wrong)

"""Features: MIND-SSC and the body."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from HiEndMAECore.errors import InputError
from HiEndMAECore.preprocessing.intensity import IntensityNormalization
from HiEndMAECore.registration.features import RegistrationImage, body_mask, extract_features, mind_ssc, tissue_class


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def test_mind_follows_its_formula_at_a_voxel() -> None:
    image = noise(15, 15, 15)
    patches = {}
    for axis in range(3):
        for sign in (1, -1):
            center = [7, 7, 7]
            center[axis] += 2 * sign
            patches[axis, sign] = image[tuple(slice(c - 1, c + 2) for c in center)]
    names = list(patches)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if a[0] != b[0]]
    distances = torch.stack([(patches[a] - patches[b]).square().mean() for a, b in pairs])
    expected = torch.exp(-(distances - distances.min()) / distances.mean())
    found = mind_ssc(image, dilation=2)[:, 7, 7, 7]
    assert torch.allclose(found.sort().values, expected.sort().values, atol=1e-5)


def test_mind_ignores_contrast() -> None:
    image = noise(12, 12, 12)
    assert torch.allclose(mind_ssc(image), mind_ssc(0.9 - 0.5 * image), atol=1e-3)


def test_tissue_class_of_hu_does_not_depend_on_contrast_medium() -> None:
    hu = torch.tensor([-1000.0, -150.0, -100.0, -70.0, 0.0, 40.0, 180.0, 400.0])
    image = ((hu + 175) / 425).clamp(0, 1)
    expected = torch.tensor([0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert torch.allclose(tissue_class(image), expected, atol=1e-5)
    assert torch.all(tissue_class(torch.linspace(0, 1, 100)).diff() >= -1e-6)


def test_mri_has_no_tissue_channel() -> None:
    scan = RegistrationImage(noise(16, 16, 16), np.eye(4))
    assert len(extract_features(scan, modality="ct", spacing=1.0).channels) == 14
    assert len(extract_features(scan, modality="mri", spacing=1.0).channels) == 13


def test_8_bits_are_close_to_floats() -> None:
    features = extract_features(RegistrationImage(noise(16, 16, 16), np.eye(4)), modality="ct", spacing=1.0)
    again = features.to_8_bits().to_float()
    assert features.to_8_bits().channels.dtype == torch.uint8
    assert float((again.channels - features.channels).abs().max()) <= 0.5 / 255 + 1e-6


def test_body_is_filled_and_excludes_small_parts() -> None:
    image = torch.zeros(20, 20, 10)
    image[4:16, 4:16] = 1.0
    image[8:12, 8:12] = 0.0  # lung or bowel gas
    image[:, 18:, 0] = 1.0
    expected = torch.zeros(20, 20, 10, dtype=torch.bool)
    expected[4:16, 4:16] = True
    assert torch.equal(body_mask(image), expected)


@pytest.mark.parametrize("slices", [1, 10])
def test_single_slice_is_refused_in_words(slices: int) -> None:
    """A slice of 10 mm may have been resampled to 1 mm."""
    with pytest.raises(InputError, match=rf"{slices} voxels along its thinnest axis \({slices} mm\)"):
        extract_features(RegistrationImage(noise(16, 16, slices), np.eye(4)), modality="ct", spacing=4.0)


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_scan_of_equal_voxels_is_refused(value: float) -> None:
    """Every position would match every other one, so that the propagated labels would be found in air."""
    with pytest.raises(InputError, match="same intensity") as caught:
        extract_features(RegistrationImage(torch.full((16, 16, 16), value), np.eye(4)), modality="ct", spacing=1.0)
    assert caught.value.code == "scan_shows_nothing"


def test_tissue_class_does_not_depend_on_the_window_of_the_model() -> None:
    """A model that was pretrained with another window of HU keeps it; soft tissue would otherwise be called fat or bone."""
    hu = torch.linspace(-175, 250, 64).reshape(4, 4, 4)
    default = RegistrationImage.of_normalized((hu + 175) / 425, np.eye(4), IntensityNormalization())
    wide = IntensityNormalization("window", -1000.0, 1000.0)
    other = RegistrationImage.of_normalized((hu + 1000) / 2000, np.eye(4), wide)
    assert torch.equal(default.image, (hu + 175) / 425)
    assert torch.allclose(other.image, default.image, atol=1e-5)
    mri = RegistrationImage.of_normalized(default.image, np.eye(4), IntensityNormalization.percentiles(0.5, 99.5))
    assert torch.equal(mri.image, default.image)

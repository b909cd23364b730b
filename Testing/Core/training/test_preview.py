"""Previews during training: on the original grid, without influence on the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from training_examples import CPU, RecordingReporter, cube_case, finetune, small_unetr

from HiEndMAECore.io.structure import Structure
from HiEndMAECore.io.volume import Geometry
from HiEndMAECore.preprocessing.pipeline import NetworkGrid
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.runtime.devices import autocast
from HiEndMAECore.training.disjoint_tiles import disjoint_tiles
from HiEndMAECore.training.preview import Preview
from HiEndMAECore.training.training_cases import TrainingCase

# The original scan is rotated and has half the voxel edge of the network's grid.
ORIGINAL_AFFINE = np.array([[0.0, -1, 0, 55], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
GRID = NetworkGrid(np.diag([2.0, 2.0, 2.0, 1.0]), Geometry((56, 56, 56), ORIGINAL_AFFINE))
STRUCTURES = [Structure(5, "cube", (255, 0, 0)), Structure(9, "ball", (0, 255, 0))]


def preview(path: Path, report: Reporter, case: TrainingCase | None = None, **options: Any) -> Preview:
    return Preview(case or cube_case(), GRID, STRUCTURES, path=path, report=report, **options)


def test_preview_lies_on_the_original_grid_and_does_not_change_the_training(tmp_path: Path) -> None:
    path, report = tmp_path / "preview.nii", RecordingReporter()
    without = finetune(tmp_path, report, steps=40, callback=preview(path, report, share=0.0))
    assert report.metrics == []
    assert not path.exists()
    result = finetune(tmp_path, report, steps=40, callback=preview(path, report, share=100.0))
    assert result.losses == without.losses
    assert all(torch.equal(a, b) for a, b in zip(without.network.parameters(), result.network.parameters()))
    assert [(m["name"], m["step"]) for m in report.metrics] == [("agreement", step) for step in (4, 10, 20, 30)]
    assert report.metrics[-1]["value"] > 0.5
    image = nib.load(path)
    np.testing.assert_allclose(image.affine, ORIGINAL_AFFINE)
    values = np.asarray(image.dataobj)
    assert set(np.unique(values)) == {0, 5, 9}
    positions = np.argwhere(values == 5) @ ORIGINAL_AFFINE[:3, :3].T + ORIGINAL_AFFINE[:3, 3]
    np.testing.assert_allclose(positions.mean(0), 2 * np.array([9.0, 10, 12]), atol=4)


def test_preview_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    """A case without labelled voxels has no Dice, and does not end the run either."""
    (tmp_path / "preview.nii").mkdir()
    report = RecordingReporter()
    case = cube_case()
    case.classes.zero_()
    preview(tmp_path / "preview.nii", report, case).on_validation(small_unetr(), step=1, crop=(16, 16, 16), device=CPU)
    assert [warning["code"] for warning in report.warnings] == ["preview_left_out"]
    assert report.metrics == []


def test_preview_of_a_scan_smaller_than_a_tile_has_the_scans_size(tmp_path: Path) -> None:
    case = cube_case()
    case = TrainingCase("small", case.image[:, :10, :9], case.classes[:10, :9])
    report = RecordingReporter()
    classes = preview(tmp_path / "preview.nii", report, case)._segment(small_unetr(), (16, 16, 16), CPU)
    assert classes.shape == (10, 9, 28)


@pytest.mark.parametrize("shape", [(28, 28, 28), (32, 16, 48), (10, 9, 28)])
def test_preview_predicts_like_a_sliding_window_without_overlap(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """MONAI averages where the last tile was moved back; there its classes may differ, and nowhere else."""
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1))
    case, network = TrainingCase("any", image, torch.zeros(shape, dtype=torch.int16)), small_unetr().eval()
    crop = (16, 16, 16)
    classes = preview(tmp_path / "preview.nii", Reporter(quiet=True), case)._segment(network, crop, CPU)
    with torch.no_grad(), autocast(CPU):
        expected = sliding_window_inference(image[None], crop, 1, network, overlap=0.0)[0].argmax(0)
    covered = torch.zeros([max(length, 16) for length in shape])
    for tile in disjoint_tiles(shape, crop):
        covered[tile.input] += 1
    if min(shape) < 16:
        assert torch.equal(classes[:, :, :12], expected[:, :, :12])
    else:
        assert torch.equal(classes[covered == 1], expected[covered == 1])


def test_disjoint_tiles_cover_every_voxel_once() -> None:
    shape = (28, 16, 40)
    counts = torch.zeros(shape)
    for tile in disjoint_tiles(shape, (16, 16, 12)):
        assert [part.stop - part.start for part in tile.input] == [16, 16, 12]
        window = torch.zeros(shape)
        window[tile.input][tile.own_in_input] = 1
        counts += window
        assert torch.equal(window.bool(), _mask(shape, tile.own))
    assert (counts == 1).all()


def _mask(shape: tuple[int, ...], part: tuple[slice, ...]) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[part] = True
    return mask

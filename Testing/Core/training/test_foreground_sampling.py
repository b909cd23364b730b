"""Crops are centered on structures and on the body, and never on ignored voxels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from training_examples import cube_case

from HiEndMAECore.training.foreground_sampling import ForegroundSampler
from HiEndMAECore.training.training_cases import IGNORED


def test_foreground_sampler_never_centers_a_crop_on_an_ignored_voxel() -> None:
    case = cube_case()
    skipped = (torch.arange(28) % 4 != 0).expand(28, 28, 28)
    part = replace(case, classes=torch.where(skipped, IGNORED, case.classes).short())
    centers, rng, found = ForegroundSampler([part], seed=0), np.random.default_rng(0), set()
    for _ in range(300):
        _, center = centers.draw(rng, (0, 0, 0))  # an empty crop is not shifted
        found.add(int(part.classes[tuple(center.astype(int))]))
    assert found == {0, 1, 2}

"""Centers of the training crops: on every structure equally often, or anywhere in the body."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .training_cases import TrainingCase

_MAX_CENTERS = 50_000  # candidate voxels of one structure in one scan
_ANYWHERE_FRACTION = 0.4  # of the crops are centered anywhere in the body instead of on a structure


class ForegroundSampler:
    """Sampler of crop centers on the structures of the training cases.

    Args:
        cases: Training cases.
        seed: Seed of the run.
    """

    def __init__(self, cases: Sequence[TrainingCase], *, seed: int) -> None:
        rng = np.random.default_rng((seed, len(cases)))
        # By class: (index of the case, candidate centers). Class 0 stands for the whole body without ignored voxels.
        self._centers: dict[int, list[tuple[int, np.ndarray]]] = {}
        for index, case in enumerate(cases):
            classes = case.classes.cpu().numpy()
            body = (case.image[0] > 0).cpu().numpy() & (classes >= 0)
            for value in (0, *np.unique(classes[classes > 0]).tolist()):
                voxels = np.argwhere(classes == value if value else body)
                if len(voxels) > _MAX_CENTERS:
                    voxels = rng.choice(voxels, _MAX_CENTERS, replace=False)
                if len(voxels):
                    self._centers.setdefault(value, []).append((index, voxels))
        self._structures = sorted(value for value in self._centers if value)

    def draw(self, rng: np.random.Generator, crop: Sequence[int]) -> tuple[int, np.ndarray]:
        """Draw a crop center.

        Args:
            rng: Generator of the sample.
            crop: Edges of the crop in voxels; the center is shifted randomly by up to a quarter of them.

        Returns:
            The index of the case and the center (3,) in voxels, as floats.
        """
        anywhere = 0 in self._centers and rng.random() < _ANYWHERE_FRACTION
        value = 0 if anywhere else int(rng.choice(self._structures))
        case, voxels = self._centers[value][int(rng.integers(len(self._centers[value])))]
        return case, voxels[int(rng.integers(len(voxels)))] + rng.uniform(-0.25, 0.25, 3) * np.array(crop)

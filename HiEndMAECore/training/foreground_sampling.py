"""The fine-tuning loop: one to a few labelled scans, held on the device, and a clock (paper section 4.1, ours in the rest).

No workers and no disk: every crop is cut out of the whole scan with its rotation, scaling and bend in one interpolation.
Step `i` draws from generators keyed by (seed, i), so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .training_cases import TrainingCase

_CENTRES = 50_000  # voxels of one structure to choose crop centres from
_ANYWHERE = 0.4  # share of crops centred anywhere in the body instead of on a structure


class ForegroundSampler:
    """Where crops are centred: on a structure drawn evenly among those there, or anywhere in the body."""

    def __init__(self, scans: Sequence[TrainingCase], *, seed: int) -> None:
        rng = np.random.default_rng((seed, len(scans)))
        self._places: dict[int, list[tuple[int, np.ndarray]]] = {}
        for index, scan in enumerate(scans):
            classes = scan.classes.cpu().numpy()
            body = (scan.image[0] > 0).cpu().numpy()
            for value in (0, *np.unique(classes[classes > 0]).tolist()):
                found = np.argwhere(classes == value if value else body)
                if len(found) > _CENTRES:
                    found = rng.choice(found, _CENTRES, replace=False)
                if len(found):
                    self._places.setdefault(value, []).append((index, found))
        self._structures = sorted(value for value in self._places if value)

    def draw(self, rng: np.random.Generator, crop: Sequence[int]) -> tuple[int, np.ndarray]:
        """(index of the scan, centre voxel (3,) float); the centre is moved by up to a quarter of the crop."""
        anywhere = 0 in self._places and rng.random() < _ANYWHERE
        value = 0 if anywhere else int(rng.choice(self._structures))
        scan, places = self._places[value][int(rng.integers(len(self._places[value])))]
        return scan, places[int(rng.integers(len(places)))] + rng.uniform(-0.25, 0.25, 3) * np.array(crop)

"""Fingerprint of a scan: along the patient's axes, as plain JSON."""

from __future__ import annotations

import json

import numpy as np

from HiEndMAECore.data.fingerprint import scan_fingerprint
from HiEndMAECore.io.volume import Geometry


def test_fingerprint_of_permuted_axes_is_along_the_patients_axes() -> None:
    affine = np.array([[0, 0, -3.0, 0], [2.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])  # stored A, I, L
    array = np.linspace(0, 1, 20 * 30 * 40, dtype=np.float32).reshape(1, 20, 30, 40)
    fingerprint = scan_fingerprint(Geometry((10, 20, 30), affine), array, (1.5, 1.5, 2.0))
    assert fingerprint["spacing_mm"] == [3.0, 2.0, 1.0]
    assert fingerprint["extent_mm"] == [30.0, 45.0, 80.0]
    np.testing.assert_allclose(fingerprint["intensities"], [[0.05, 0.5, 0.95]], atol=1e-3)
    json.dumps(fingerprint)

"""Scans of a simple body for the tests of preprocessing."""

from __future__ import annotations

import numpy as np
from geometries import balls

from HiEndMAECore.io.volume import Geometry, Volume

rng = np.random.default_rng(0)


def body(geometry: Geometry, *, air: float = -1000.0) -> Volume:
    """Return a scan of a ball of soft tissue in air."""
    return Volume(np.where(balls(geometry)[None] > 0, 50.0, air).astype(np.float32), geometry)

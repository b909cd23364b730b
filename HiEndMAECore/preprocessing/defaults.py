"""Default intensity limits. Standard library only, because `prepare --help` shows them."""

from __future__ import annotations

CT_WINDOW_HU = (-175.0, 250.0)  # HU that become 0 and 1, paper section 4.1
MRI_PERCENTILES = (0.5, 99.5)  # percent of all voxels that become 0, percent of the bright voxels below 1

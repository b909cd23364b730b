"""Reading the atlases of a model: what it keeps of its labelled scans."""

from __future__ import annotations

from pathlib import Path

from HiEndMAECore.models.folder import read_atlas_tensors
from HiEndMAECore.registration.atlas import Atlas


def read_atlases(path: Path) -> tuple[Atlas, ...]:
    """Return the atlases of a model, on the CPU; none where the model keeps none.

    Args:
        path: Model folder or zip.

    Raises:
        InputError: `model_damaged` or `model_unusable`, as of `models.folder.read_atlas_tensors` and `Atlas.from_tensors`.
    """
    description, stored = read_atlas_tensors(path)
    return tuple(
        Atlas.from_tensors(
            atlas.tensors, atlas.metadata, structures=len(description.labels), name=str(index + 1), source=path
        )
        for index, atlas in enumerate(stored)
    )

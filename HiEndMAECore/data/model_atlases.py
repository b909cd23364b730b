"""Reading the atlases of a model: what it keeps of its labelled scans."""

from __future__ import annotations

from pathlib import Path

from HiEndMAECore.errors import InputError
from HiEndMAECore.models.description import ModelDescription
from HiEndMAECore.models.folder import read_atlas_tensors
from HiEndMAECore.registration.atlas import Atlas


def read_atlases(path: Path, expected: ModelDescription | None = None) -> tuple[Atlas, ...]:
    """Return the atlases of a model, on the CPU; none where the model keeps none.

    Args:
        path: Model folder or zip.
        expected: Description that the atlases must belong to, of a model that was read before; None: the model's own.

    Raises:
        InputError: `model_damaged` or `model_unusable`, as of `models.folder.read_atlas_tensors` and `Atlas.from_tensors`;
            also where another model has taken the place of the expected one.
    """
    description, stored = read_atlas_tensors(path)
    if expected is not None and description.model_sha256 != expected.model_sha256:
        raise InputError("model_damaged", f"The model {path} was replaced while it was read.", "Start again.")
    return tuple(
        Atlas.from_tensors(
            atlas.tensors, atlas.metadata, structures=len(description.labels), name=str(index + 1), source=path
        )
        for index, atlas in enumerate(stored)
    )

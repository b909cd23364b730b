"""Compatibility: the names of this module have moved to `HiEndMAECore.models.folder`."""

from __future__ import annotations

from HiEndMAECore.models.description import FORMAT_VERSION, KINDS, ModelDescription
from HiEndMAECore.models.folder import (
    DESCRIPTION,
    WEIGHTS,
    copy_model,
    is_model,
    read_description,
    read_weights,
    write_model,
)
from HiEndMAECore.models.folder import check_output_free as refuse_taken

__all__ = [
    "DESCRIPTION",
    "FORMAT_VERSION",
    "KINDS",
    "WEIGHTS",
    "ModelDescription",
    "copy_model",
    "is_model",
    "read_description",
    "read_weights",
    "refuse_taken",
    "write_model",
]

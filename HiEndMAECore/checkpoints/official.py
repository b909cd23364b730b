"""Compatibility: the names of this module have moved to `HiEndMAECore.models.authors`."""

from __future__ import annotations

from HiEndMAECore.models.authors import infer_variant as variant_of
from HiEndMAECore.models.authors import load_pretraining_state as load_pretraining_state
from HiEndMAECore.models.authors import read_authors_checkpoint as read_authors_file
from HiEndMAECore.models.authors import strip_module_prefix as strip_wrapper
from HiEndMAECore.models.authors import write_authors_checkpoint as write_authors_file
from HiEndMAECore.networks.transfer import load_strict as load_strictly

__all__ = [
    "load_pretraining_state",
    "load_strictly",
    "read_authors_file",
    "strip_wrapper",
    "variant_of",
    "write_authors_file",
]

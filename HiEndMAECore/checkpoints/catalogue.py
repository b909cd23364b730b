"""Compatibility: the names of this module have moved to `HiEndMAECore.models.catalogue`."""

from __future__ import annotations

from HiEndMAECore.models.catalogue import CATALOGUE as CATALOGUE
from HiEndMAECore.models.catalogue import DEFAULT_WEIGHTS as OURS
from HiEndMAECore.models.catalogue import CatalogueEntry as CatalogueEntry
from HiEndMAECore.models.catalogue import check_known_file as check_known_file
from HiEndMAECore.models.catalogue import find_entry as find_entry
from HiEndMAECore.models.catalogue import packaged_weights as in_the_box

__all__ = ["CATALOGUE", "OURS", "CatalogueEntry", "check_known_file", "find_entry", "in_the_box"]

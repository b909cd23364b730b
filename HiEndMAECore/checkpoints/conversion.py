"""Compatibility: the names of this module have moved to `HiEndMAECore.models.conversion`."""

from __future__ import annotations

from HiEndMAECore.models.conversion import SUFFIXES as SUFFIXES
from HiEndMAECore.models.conversion import convert as convert
from HiEndMAECore.models.conversion import main as main

__all__ = ["SUFFIXES", "convert", "main"]


if __name__ == "__main__":
    raise SystemExit(main())

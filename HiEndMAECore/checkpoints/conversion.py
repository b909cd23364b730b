"""Compatibility: this module has moved to `HiEndMAECore.models.conversion`."""

from __future__ import annotations

from HiEndMAECore.models.conversion import convert as convert
from HiEndMAECore.models.conversion import main as main

__all__ = ["convert", "main"]


if __name__ == "__main__":
    raise SystemExit(main())

"""What the module HiEndMAESegmentation is made of. No torch here: the engine runs in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path


def _find_engine() -> Path:
    """The folder that holds HiEndMAECore: beside this package when installed, one above in a source tree."""
    here = Path(__file__).resolve().parents[1]
    return next((folder for folder in (here, here.parent) if (folder / "HiEndMAECore").is_dir()), here)


ENGINE_FOLDER = _find_engine()
if str(ENGINE_FOLDER) not in sys.path:  # Slicer's "additional module paths" do not reach the folder above
    sys.path.append(str(ENGINE_FOLDER))

"""What the module HiEndMAESegmentation is made of. No torch here: the engine runs in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

MODULE_FOLDER = Path(__file__).resolve().parents[1]


def _find_engine() -> Path:
    """The folder that holds HiEndMAECore: beside this package when installed, one above in a source tree."""
    places = (MODULE_FOLDER, MODULE_FOLDER.parent)
    return next((folder for folder in places if (folder / "HiEndMAECore").is_dir()), MODULE_FOLDER)


ENGINE_FOLDER = _find_engine()
if str(ENGINE_FOLDER) not in sys.path:  # Slicer's "additional module paths" do not reach the folder above
    sys.path.append(str(ENGINE_FOLDER))

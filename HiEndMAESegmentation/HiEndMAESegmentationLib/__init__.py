"""The parts of the module HiEndMAESegmentation. torch is never imported here: the engine runs in a child process."""

from __future__ import annotations

import sys
from pathlib import Path

MODULE_FOLDER = Path(__file__).resolve().parents[1]


def _find_engine() -> Path:
    """Return the folder that holds HiEndMAECore: this package's when installed, the one above it in a source tree."""
    candidates = (MODULE_FOLDER, MODULE_FOLDER.parent)
    return next((folder for folder in candidates if (folder / "HiEndMAECore").is_dir()), MODULE_FOLDER)


ENGINE_FOLDER = _find_engine()
if str(ENGINE_FOLDER) not in sys.path:  # Slicer's "additional module paths" do not include the folder above
    sys.path.append(str(ENGINE_FOLDER))

"""Text files that are whole or not there: written beside and renamed."""

from __future__ import annotations

import os
from pathlib import Path

from HiEndMAECore.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8, line ends as they are) to `path`, making its folder. `InputError` `output_unwritable`."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", newline="\n")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        message = f"{path} cannot be written ({error.strerror})."
        raise InputError("output_unwritable", message, "Choose another place, or free some space.") from error

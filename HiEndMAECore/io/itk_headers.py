"""Strict checks of NRRD and MetaImage headers, in plain Python, before ITK opens the file.

ITK's C and C++ readers trust these text headers: a long value that they cannot parse overruns an error buffer, a number
of dimensions outside their arrays ends the process, and the name of a data file is used as a format string and as a path.
`check_header` accepts what the common writers produce and refuses everything else with an `InputError`, so that one
damaged or hostile file costs one scan and not the whole run.

The checks follow the parsers of ITK (NrrdIO and MetaIO): a line that they would understand in another way than this
module does is refused. Custom fields (`key:=value` in NRRD, unknown names in MetaImage) may be long and hold any text.
"""

from __future__ import annotations

from pathlib import Path

from HiEndMAECore.errors import InputError

from .metaimage_header import check_metaimage_header
from .nrrd_header import check_nrrd_header

NRRD_SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")


def check_header(path: Path) -> None:
    """Raise `InputError` unless ITK can read the header of this NRRD or MetaImage file without harm.

    The error is `not_a_volume`, names the file and the header field, and says what to do; `file_truncated` and
    `file_missing` stand for voxels that cannot all be there. Files of other suffixes pass unread.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as stream:
            if suffix in NRRD_SUFFIXES:
                check_nrrd_header(path, stream)
            elif suffix in META_SUFFIXES:
                check_metaimage_header(path, stream)
    except OSError as error:
        message = f"The file {path} cannot be read ({error.strerror or error})."
        raise InputError("file_unreadable", message, "Ask for permission, or copy it.") from error

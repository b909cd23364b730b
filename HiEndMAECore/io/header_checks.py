"""Checks that the text headers of NRRD and MetaImage files share. Standard library only."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from HiEndMAECore.errors import InputError

_LARGEST_MM = 1e6  # of a coordinate, a spacing or a direction, in millimetres
MAX_VOXELS = 2**40
_DEFLATE_RATIO = 1040  # deflate packs 1032 bytes into one at best
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
MAX_TEXT_BYTES = 254  # MetaIO keeps 255 bytes of a name or a text


def parse_integer(path: Path, field: str, text: str, low: int, high: int) -> int:
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise refuse_field(path, field, f"is {quote(text)}, not a whole number from {low} to {high}")
    return int(text)


def parse_sizes(path: Path, field: str, text: str, dimension: int) -> list[int]:
    """The voxels along each axis."""
    words = text.split()
    if len(words) != dimension:
        raise refuse_field(path, field, f"has {len(words)} numbers for {dimension} dimensions")
    sizes = [parse_integer(path, field, word, 1, 2**31 - 1) for word in words]
    if math.prod(sizes) > MAX_VOXELS:
        raise refuse_field(path, field, "asks for more voxels than any memory holds")
    return sizes


def check_numbers(
    path: Path,
    field: str,
    words: Sequence[str],
    *,
    count: int | None = None,
    missing: bool = False,
    largest: float = _LARGEST_MM,
) -> None:
    """Refuse words that are no finite numbers of moderate size; `missing`: "nan" stands for an axis without one."""
    if count is not None and len(words) != count:
        raise refuse_field(path, field, f"has {len(words)} numbers instead of {count}")
    for word in words:
        if missing and word.lower() == "nan":
            continue
        if not _NUMBER.fullmatch(word):
            raise refuse_field(path, field, f"holds {quote(word)}, which is not a finite number")
        if not abs(float(word)) <= largest or math.isinf(float(word)):
            raise refuse_field(path, field, f"holds {quote(word)}, which is too large to be true")


def find_data_file(path: Path, field: str, name: str, *, packed_suffixes: Sequence[str] = ("",)) -> Path:
    """The file of voxels beside the header `path`. Patterns, lists and paths are refused: they could lead anywhere,
    and ITK uses a percent sign as the start of a format."""
    advice = "Put the file of voxels beside the header, give it a plain name, and write that name into the header."
    if "%" in name:
        advice = "Rename the file of voxels so that its name has no percent sign, and correct the name in the header."
        raise refuse_field(path, field, f"is {quote(name)}, which has a percent sign", advice)
    if name.startswith(("LIST", "SKIPLIST")):
        advice = "Save the scan as one file; a single file of voxels must have a name that does not start with LIST."
        raise refuse_field(path, field, f"is {quote(name)}, a list of files", advice)
    if (
        name in ("", "-", ".", "..")
        or len(os.fsencode(name)) > MAX_TEXT_BYTES
        or any(sign in '/\\:"*?<>|' or sign < " " for sign in name)
    ):
        raise refuse_field(path, field, f"is {quote(name)}, not the plain name of a file beside the header", advice)
    for suffix in packed_suffixes:
        if (data := path.with_name(name + suffix)).is_file():
            if os.path.samefile(data, path):
                raise refuse_field(path, field, "names the header itself", advice)
            return data
    raise InputError(
        "file_missing",
        f"{path} cannot be read: the header field '{field}' names {quote(name)}, which is not beside it.",
        "Put the header and the file of voxels into one folder, and leave their names as they were saved.",
    )


def check_data_size(path: Path, data: Path, needed: int, *, packed: bool) -> None:
    """Refuse a header that asks for more bytes of voxels than its file can hold, before memory is taken for them."""
    if needed > data.stat().st_size * (_DEFLATE_RATIO if packed else 1):
        raise truncated_file(path)


def truncated_file(path: Path) -> InputError:
    return InputError("file_truncated", f"The file {path} is cut short or damaged.", "Copy or export it again.")


def refuse_field(
    path: Path, field: str, reason: str, advice: str = "Export the scan again, or correct this line of its header."
) -> InputError:
    field = field if field.startswith("'") else f"'{field}'"
    return InputError("not_a_volume", f"{path} cannot be read: the header field {field} {reason}.", advice)


def quote(text: str) -> str:
    """The start of a text from a file, in quotes and without control characters."""
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return "'" + "".join(sign if sign.isprintable() else "?" for sign in short) + "'"

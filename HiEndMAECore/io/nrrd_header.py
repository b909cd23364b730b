"""Strict check of a NRRD header, following the parser of ITK (NrrdIO). Standard library only.

Facts: the NRRD format definition, and the limits of NrrdIO's buffers.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import BinaryIO

from HiEndMAECore.errors import InputError

from .header_checks import (
    check_data_size,
    check_numbers,
    find_data_file,
    parse_integer,
    parse_sizes,
    quote,
    refuse_field,
    truncated_file,
)

_NRRD_HEADER_BYTES = 16 << 20
_NRRD_LINE_BYTES = 4 << 20  # of a comment or a key:=value line
_NRRD_FIELD_BYTES = 500  # of a field; NrrdIO's error messages have room for about 1000
_NRRD_LINES = 10_000
_NRRD_MAGIC = {b"NRRD00.01", *(b"NRRD000%d" % version for version in range(1, 7))}
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), 1),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), 8),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int"), 8),
    **dict.fromkeys(("int64", "int64_t", "uint64", "uint64_t", "double"), 8),
    "float": 4,
}  # bytes of a voxel by name
_NRRD_PACKED = {"gz", "gzip"}
_NRRD_ENCODINGS = {"raw", "txt", "text", "ascii", "hex", *_NRRD_PACKED, "bz2", "bzip2", "zrl"}
_NRRD_VECTORS = ("space directions", "space origin", "measurement frame")
_NRRD_NUMBERS = ("spacings", "thicknesses", "axis mins", "axis maxs")
_NRRD_SINGLE = ("old min", "old max")
_NRRD_INTEGERS = {
    "space dimension": (1, 8),
    "block size": (0, 2**31 - 1),
    "line skip": (0, 2**31 - 1),
    "byte skip": (-1, 2**40),
}
_NRRD_TEXT = {
    *("content", "number", "space", "centerings", "kinds", "labels", "units", "min", "max"),
    *("endian", "sample units", "space units"),
}
# Each spelling of a field leads to one name.
_NRRD_FIELDS: dict[str, str] = {
    "centers": "centerings",
    **{
        spelling: name
        for name in (
            *("type", "dimension", "sizes", "encoding", "data file"),
            *(*_NRRD_VECTORS, *_NRRD_NUMBERS, *_NRRD_SINGLE, *_NRRD_INTEGERS, *_NRRD_TEXT),
        )
        for spelling in (name, name.replace(" ", ""))
    },
}


def check_nrrd_header(path: Path, stream: BinaryIO) -> None:
    if stream.readline(16).rstrip(b"\r\n") not in _NRRD_MAGIC:
        raise InputError(
            "not_a_volume",
            f"{path} is not a volume that can be read here: it does not start as NRRD files do.",
            "Give NIfTI, NRRD, MHA/MHD or a folder of DICOM files.",
        )
    fields, complete = _nrrd_fields(path, stream)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise refuse_field(path, name, "is missing")
    voxel_bytes = _NRRD_TYPES.get(fields["type"].lower())
    if voxel_bytes is None:
        raise refuse_field(path, "type", f"is {quote(fields['type'])}, which is not a type of scalar voxels")
    encoding = fields["encoding"].lower()
    if encoding not in _NRRD_ENCODINGS:
        raise refuse_field(path, "encoding", f"is {quote(fields['encoding'])}, which is not known")
    dimension = parse_integer(path, "dimension", fields["dimension"], 2, 5)
    sizes = parse_sizes(path, "sizes", fields["sizes"], dimension)
    for name, (low, high) in _NRRD_INTEGERS.items():
        if name in fields:
            parse_integer(path, name, fields[name], low, high)
    for name in _NRRD_VECTORS:  # "none" and not-a-number stand for an axis that has no direction
        text = re.sub(r"[(),]", " ", fields.get(name, ""))
        check_numbers(path, name, [word for word in text.split() if word != "none"], missing=True)
    for name in _NRRD_NUMBERS:
        check_numbers(path, name, fields.get(name, "").split(), missing=True)
    for name in _NRRD_SINGLE:
        check_numbers(path, name, fields.get(name, "").split(), missing=True, largest=math.inf)
    data = path
    if "data file" in fields:
        if path.suffix.lower() != ".nhdr":
            advice = "Save the scan again with its voxels in the same file, or rename the header to .nhdr."
            raise refuse_field(path, "data file", "leads to another file, which only a .nhdr file may do", advice)
        data = find_data_file(path, "data file", fields["data file"])
    elif not complete and path.suffix.lower() == ".nrrd":
        raise truncated_file(path)
    if encoding == "raw" or encoding in _NRRD_PACKED:
        check_data_size(path, data, math.prod(sizes) * voxel_bytes, packed=encoding != "raw")


def _nrrd_fields(path: Path, stream: BinaryIO) -> tuple[dict[str, str], bool]:
    """(fields by name, does the header end with an empty line?); comments and key:=value lines are passed over."""
    fields: dict[str, str] = {}
    for _ in range(_NRRD_LINES):
        line = stream.readline(_NRRD_LINE_BYTES + 1)
        start = quote(line[:40].decode("utf-8", "replace").rstrip())
        if len(line) > _NRRD_LINE_BYTES or stream.tell() > _NRRD_HEADER_BYTES:
            raise refuse_field(path, start, "is too long")
        if line.rstrip(b"\r\n") == b"":
            return fields, line != b""
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            raise refuse_field(path, start, "holds a control character")
        if line.startswith(b"#"):
            continue
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(": ")
        field = _NRRD_FIELDS.get(name.lower()) if colon else None
        if field is None:
            if ":=" in name:
                continue
            raise refuse_field(path, start, "is neither a field of NRRD nor a key:=value line")
        if field in fields:
            raise refuse_field(path, field, "is there twice")
        if len(line) > (_NRRD_LINE_BYTES if field == "content" else _NRRD_FIELD_BYTES):
            raise refuse_field(path, field, f"is {len(line)} characters long")
        fields[field] = value.strip(" \t")
    raise refuse_field(path, start, f"is beyond the {_NRRD_LINES} lines that a header may have")

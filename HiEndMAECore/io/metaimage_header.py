"""Strict check of a MetaImage header, following the parser of ITK (MetaIO). Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from .header_checks import (
    MAX_TEXT_BYTES,
    MAX_VOXELS,
    check_data_size,
    check_numbers,
    find_data_file,
    parse_integer,
    parse_sizes,
    quote,
    refuse_field,
    truncated_file,
)

_META_HEADER_BYTES = 16 << 20
_META_VALUE_BYTES = 32_000  # MetaIO keeps 32,768 bytes of a custom field
_META_LINES = 2_000  # MetaIO takes 33 kB of memory for each custom field
_META_TYPES: dict[str, int] = {
    f"MET_{name}{array}": size
    for name, size in {
        **dict.fromkeys(("CHAR", "UCHAR", "ASCII_CHAR"), 1),
        **dict.fromkeys(("SHORT", "USHORT"), 2),
        **dict.fromkeys(("INT", "UINT", "LONG", "ULONG", "FLOAT"), 4),
        **dict.fromkeys(("LONG_LONG", "ULONG_LONG", "DOUBLE"), 8),
    }.items()
    for array in ("", "_ARRAY")
}
_META_VECTORS = {
    *("Position", "Origin", "Offset", "CenterOfRotation", "ElementSpacing", "ElementSize", "ElementOrigin"),
    *("ImagePosition", "SequenceID"),
}  # one number a dimension
_META_MATRICES = {"TransformMatrix", "Rotation", "Orientation", "ElementDirection"}
_META_SINGLE = {"ElementMin", "ElementMax", "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"}
_META_INTEGERS = {
    "NDims": (2, 4),
    "ElementNumberOfChannels": (1, 2**16),
    "HeaderSize": (-1, 2**40),
    "CompressedDataSize": (0, 2**40),
    "FileFormatVersion": (0, 2**31 - 1),
    "ID": (-(2**31), 2**31 - 1),
    "ParentID": (-(2**31), 2**31 - 1),
}
_META_TEXT = {
    *("ObjectType", "ObjectSubType", "Comment", "AcquisitionDate", "Name", "CompressedData", "BinaryData", "Modality"),
    *("ElementByteOrderMSB", "BinaryDataByteOrderMSB", "DistanceUnits", "AnatomicalOrientation"),
}


def check_metaimage_header(path: Path, stream: BinaryIO) -> None:
    fields = _meta_fields(path, stream)
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if name not in fields:
            raise refuse_field(path, name, "is missing")
    values = {
        name: parse_integer(path, name, fields[name], *span) for name, span in _META_INTEGERS.items() if name in fields
    }
    dimension = values["NDims"]
    if next(name for name in fields if name == "NDims" or _needs_dimension(name)) != "NDims":
        raise refuse_field(path, "NDims", "comes after a field that depends on it")
    sizes = parse_sizes(path, "DimSize", fields["DimSize"], dimension)
    for name, text in fields.items():
        if name in _META_VECTORS or name in _META_MATRICES:
            check_numbers(path, name, text.split(), count=dimension if name in _META_VECTORS else dimension**2)
        elif name in _META_SINGLE:
            check_numbers(path, name, text.split(), count=1, largest=math.inf)
        elif name == "Color":
            check_numbers(path, name, text.split(), count=4)
    if fields["ElementType"] not in _META_TYPES:
        raise refuse_field(path, "ElementType", f"is {quote(fields['ElementType'])}, which is not known")
    data = path
    if fields["ElementDataFile"] not in ("LOCAL", "Local", "local"):
        if path.suffix.lower() == ".mha":
            advice = "Save the scan again as .mha, or rename the header to .mhd."
            raise refuse_field(path, "ElementDataFile", "is not LOCAL, as it must be in a .mha file", advice)
        data = find_data_file(path, "ElementDataFile", fields["ElementDataFile"], packed_suffixes=("", ".gz", ".Z"))
    packed = fields.get("CompressedData", "F")[:1] in ("T", "t", "1") or data.suffix in (".gz", ".Z")
    voxels = math.prod(sizes) * values.get("ElementNumberOfChannels", 1)
    if voxels > MAX_VOXELS:
        raise refuse_field(path, "ElementNumberOfChannels", "asks for more numbers than any memory holds")
    if max(values.get("CompressedDataSize", 0), values.get("HeaderSize", 0)) > data.stat().st_size:
        raise truncated_file(data)
    if fields.get("BinaryData", "T")[:1] in ("T", "t", "1"):
        check_data_size(path, data, voxels * _META_TYPES[fields["ElementType"]], packed=packed)


def _needs_dimension(name: str) -> bool:
    return name == "DimSize" or name in _META_VECTORS or name in _META_MATRICES


def _meta_fields(path: Path, stream: BinaryIO) -> Mapping[str, str]:
    """The fields that MetaIO knows, in the order of the file; the last one is ElementDataFile."""
    known = {"DimSize", "Color", "ElementType", "ElementDataFile", *_META_INTEGERS, *_META_TEXT}
    known |= _META_VECTORS | _META_MATRICES | _META_SINGLE
    fields: dict[str, str] = {}
    for _ in range(_META_LINES):
        line = stream.readline(_META_VALUE_BYTES + 1)
        start = quote(line[:40].decode("utf-8", "replace").strip())
        if len(line) > _META_VALUE_BYTES or stream.tell() > _META_HEADER_BYTES:
            raise refuse_field(path, start, "is too long")
        if not line:
            raise refuse_field(path, "ElementDataFile", "is missing")
        if not line.strip(b" \t\r\n"):
            continue
        name, separator, value = _split_meta(line.decode("utf-8", "surrogateescape"))
        if not separator or not name or "\0" in line.decode("latin-1") or any(sign < " " for sign in name):
            raise refuse_field(path, start, "is not of the form 'name = value'")
        if len(name.encode("utf-8", "surrogateescape")) > MAX_TEXT_BYTES:
            raise refuse_field(path, start, "has a name that is too long")
        if name not in known:
            continue
        if name in fields:
            raise refuse_field(path, name, "is there twice")
        if not value and name not in _META_TEXT:
            raise refuse_field(path, name, "is empty")
        if len(value.encode("utf-8", "surrogateescape")) > (
            2 * MAX_TEXT_BYTES if _is_numeric(name) else MAX_TEXT_BYTES
        ):
            raise refuse_field(path, name, f"is {len(value)} characters long")
        fields[name] = value
        if name == "ElementDataFile":
            return fields
    raise refuse_field(path, start, f"is beyond the {_META_LINES} lines that a header may have")


def _is_numeric(name: str) -> bool:
    return name not in _META_TEXT and name not in ("ElementType", "ElementDataFile")


def _split_meta(line: str) -> tuple[str, str, str]:
    """(name, separator, value): '=' and ':' both separate, and MetaIO skips every one of them before the value."""
    found = re.search("[=:]", line)
    if found is None:
        return line.strip(), "", ""
    value = line[found.end() :].lstrip("=: \t").rstrip(" \t\r\n")
    return line[: found.start()].lstrip(" \t\r\v\f").rstrip(" \t"), found.group(), value

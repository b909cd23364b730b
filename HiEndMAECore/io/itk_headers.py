"""Strict checks of NRRD and MetaImage headers, in plain Python, before ITK opens the file.

ITK's C and C++ readers trust these text headers: a long value that they cannot parse overruns an error buffer, a number
of dimensions outside their arrays ends the process, and the name of a data file is used as a format string and as a path.
`check_header` accepts what the common writers produce and refuses everything else with an `InputError`, so that one
damaged or hostile file costs one scan and not the whole run.

The checks follow the parsers of ITK (NrrdIO and MetaIO): a line that they would understand in another way than this
module does is refused. Custom fields (`key:=value` in NRRD, unknown names in MetaImage) may be long and hold any text.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from HiEndMAECore.errors import InputError

NRRD_SUFFIXES = (".nrrd", ".nhdr")


META_SUFFIXES = (".mha", ".mhd")


_LARGEST = 1e6  # of a coordinate, a spacing or a direction, in millimetres


_MOST_VOXELS = 2**40


_DEFLATE_RATIO = 1040  # deflate packs 1032 bytes into one at best


_NRRD_HEADER_BYTES = 16 << 20


_NRRD_LINE_BYTES = 4 << 20  # of a comment or a key:=value line


_NRRD_FIELD_BYTES = 500  # of a field; NrrdIO's error messages have room for about 1000


_NRRD_LINES = 10_000


_META_HEADER_BYTES = 16 << 20


_META_VALUE_BYTES = 32_000  # MetaIO keeps 32,768 bytes of a custom field


_META_TEXT_BYTES = 254  # MetaIO keeps 255 bytes of a name or a text


_META_LINES = 2_000  # MetaIO takes 33 kB of memory for each custom field


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)


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


def check_header(path: Path) -> None:
    """Raise `InputError` unless ITK can read the header of this NRRD or MetaImage file without harm.

    The error is `not_a_volume`, names the file and the header field, and says what to do; `file_truncated` and
    `file_missing` stand for voxels that cannot all be there. Files of other suffixes pass unread.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as stream:
            if suffix in NRRD_SUFFIXES:
                _check_nrrd(path, stream)
            elif suffix in META_SUFFIXES:
                _check_meta(path, stream)
    except OSError as error:
        message = f"The file {path} cannot be read ({error.strerror or error})."
        raise InputError("file_unreadable", message, "Ask for permission, or copy it.") from error


def _check_nrrd(path: Path, stream: BinaryIO) -> None:
    if stream.readline(16).rstrip(b"\r\n") not in _NRRD_MAGIC:
        raise InputError(
            "not_a_volume",
            f"{path} is not a volume that can be read here: it does not start as NRRD files do.",
            "Give NIfTI, NRRD, MHA/MHD or a folder of DICOM files.",
        )
    fields, complete = _nrrd_fields(path, stream)
    for name in ("type", "dimension", "sizes", "encoding"):
        if name not in fields:
            raise _refused(path, name, "is missing")
    voxel_bytes = _NRRD_TYPES.get(fields["type"].lower())
    if voxel_bytes is None:
        raise _refused(path, "type", f"is {_shown(fields['type'])}, which is no type of scalar voxels")
    encoding = fields["encoding"].lower()
    if encoding not in _NRRD_ENCODINGS:
        raise _refused(path, "encoding", f"is {_shown(fields['encoding'])}, which is not known")
    dimension = _integer(path, "dimension", fields["dimension"], 2, 5)
    sizes = _sizes(path, "sizes", fields["sizes"], dimension)
    for name, (low, high) in _NRRD_INTEGERS.items():
        if name in fields:
            _integer(path, name, fields[name], low, high)
    for name in _NRRD_VECTORS:  # "none" and not-a-number stand for an axis that has no direction
        text = re.sub(r"[(),]", " ", fields.get(name, ""))
        _numbers(path, name, [word for word in text.split() if word != "none"], missing=True)
    for name in _NRRD_NUMBERS:
        _numbers(path, name, fields.get(name, "").split(), missing=True)
    for name in _NRRD_SINGLE:
        _numbers(path, name, fields.get(name, "").split(), missing=True, largest=math.inf)
    data = path
    if "data file" in fields:
        if path.suffix.lower() != ".nhdr":
            advice = "Save the scan again with its voxels in the same file, or rename the header to .nhdr."
            raise _refused(path, "data file", "leads to another file, which only a .nhdr file may do", advice)
        data = _data_file(path, "data file", fields["data file"])
    elif not complete and path.suffix.lower() == ".nrrd":
        raise _cut_short(path)
    if encoding == "raw" or encoding in _NRRD_PACKED:
        _check_room(path, data, math.prod(sizes) * voxel_bytes, packed=encoding != "raw")


def _nrrd_fields(path: Path, stream: BinaryIO) -> tuple[dict[str, str], bool]:
    """(fields by name, does the header end with an empty line?); comments and key:=value lines are passed over."""
    fields: dict[str, str] = {}
    for _ in range(_NRRD_LINES):
        line = stream.readline(_NRRD_LINE_BYTES + 1)
        start = _shown(line[:40].decode("utf-8", "replace").rstrip())
        if len(line) > _NRRD_LINE_BYTES or stream.tell() > _NRRD_HEADER_BYTES:
            raise _refused(path, start, "is too long")
        if line.rstrip(b"\r\n") == b"":
            return fields, line != b""
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if b"\r" in line or b"\0" in line:
            raise _refused(path, start, "holds a control character")
        if line.startswith(b"#"):
            continue
        name, colon, value = line.decode("utf-8", "surrogateescape").partition(": ")
        field = _NRRD_FIELDS.get(name.lower()) if colon else None
        if field is None:
            if ":=" in name:
                continue
            raise _refused(path, start, "is neither a field of NRRD nor a key:=value line")
        if field in fields:
            raise _refused(path, field, "is there twice")
        if len(line) > (_NRRD_LINE_BYTES if field == "content" else _NRRD_FIELD_BYTES):
            raise _refused(path, field, f"is {len(line)} characters long")
        fields[field] = value.strip(" \t")
    raise _refused(path, start, f"is beyond the {_NRRD_LINES} lines that a header may have")


def _check_meta(path: Path, stream: BinaryIO) -> None:
    fields = _meta_fields(path, stream)
    for name in ("NDims", "DimSize", "ElementType", "ElementDataFile"):
        if name not in fields:
            raise _refused(path, name, "is missing")
    values = {
        name: _integer(path, name, fields[name], *span) for name, span in _META_INTEGERS.items() if name in fields
    }
    dimension = values["NDims"]
    if next(name for name in fields if name == "NDims" or _needs_dimension(name)) != "NDims":
        raise _refused(path, "NDims", "comes after a field that depends on it")
    sizes = _sizes(path, "DimSize", fields["DimSize"], dimension)
    for name, text in fields.items():
        if name in _META_VECTORS or name in _META_MATRICES:
            _numbers(path, name, text.split(), count=dimension if name in _META_VECTORS else dimension**2)
        elif name in _META_SINGLE:
            _numbers(path, name, text.split(), count=1, largest=math.inf)
        elif name == "Color":
            _numbers(path, name, text.split(), count=4)
    if fields["ElementType"] not in _META_TYPES:
        raise _refused(path, "ElementType", f"is {_shown(fields['ElementType'])}, which is not known")
    data = path
    if fields["ElementDataFile"] not in ("LOCAL", "Local", "local"):
        if path.suffix.lower() == ".mha":
            advice = "Save the scan again as .mha, or rename the header to .mhd."
            raise _refused(path, "ElementDataFile", "is not LOCAL, as it must be in a .mha file", advice)
        data = _data_file(path, "ElementDataFile", fields["ElementDataFile"], packed_suffixes=("", ".gz", ".Z"))
    packed = fields.get("CompressedData", "F")[:1] in ("T", "t", "1") or data.suffix in (".gz", ".Z")
    voxels = math.prod(sizes) * values.get("ElementNumberOfChannels", 1)
    if voxels > _MOST_VOXELS:
        raise _refused(path, "ElementNumberOfChannels", "asks for more numbers than any memory holds")
    if max(values.get("CompressedDataSize", 0), values.get("HeaderSize", 0)) > data.stat().st_size:
        raise _cut_short(data)
    if fields.get("BinaryData", "T")[:1] in ("T", "t", "1"):
        _check_room(path, data, voxels * _META_TYPES[fields["ElementType"]], packed=packed)


def _needs_dimension(name: str) -> bool:
    return name == "DimSize" or name in _META_VECTORS or name in _META_MATRICES


def _meta_fields(path: Path, stream: BinaryIO) -> Mapping[str, str]:
    """The fields that MetaIO knows, in the order of the file; the last one is ElementDataFile."""
    known = {"DimSize", "Color", "ElementType", "ElementDataFile", *_META_INTEGERS, *_META_TEXT}
    known |= _META_VECTORS | _META_MATRICES | _META_SINGLE
    fields: dict[str, str] = {}
    for _ in range(_META_LINES):
        line = stream.readline(_META_VALUE_BYTES + 1)
        start = _shown(line[:40].decode("utf-8", "replace").strip())
        if len(line) > _META_VALUE_BYTES or stream.tell() > _META_HEADER_BYTES:
            raise _refused(path, start, "is too long")
        if not line:
            raise _refused(path, "ElementDataFile", "is missing")
        if not line.strip(b" \t\r\n"):
            continue
        name, separator, value = _split_meta(line.decode("utf-8", "surrogateescape"))
        if not separator or not name or "\0" in line.decode("latin-1") or any(sign < " " for sign in name):
            raise _refused(path, start, "is not of the form 'name = value'")
        if len(name.encode("utf-8", "surrogateescape")) > _META_TEXT_BYTES:
            raise _refused(path, start, "has a name that is too long")
        if name not in known:
            continue
        if name in fields:
            raise _refused(path, name, "is there twice")
        if not value and name not in _META_TEXT:
            raise _refused(path, name, "is empty")
        if len(value.encode("utf-8", "surrogateescape")) > (
            2 * _META_TEXT_BYTES if _is_numeric(name) else _META_TEXT_BYTES
        ):
            raise _refused(path, name, f"is {len(value)} characters long")
        fields[name] = value
        if name == "ElementDataFile":
            return fields
    raise _refused(path, start, f"is beyond the {_META_LINES} lines that a header may have")


def _is_numeric(name: str) -> bool:
    return name not in _META_TEXT and name not in ("ElementType", "ElementDataFile")


def _split_meta(line: str) -> tuple[str, str, str]:
    """(name, separator, value): '=' and ':' both separate, and MetaIO skips every one of them before the value."""
    found = re.search("[=:]", line)
    if found is None:
        return line.strip(), "", ""
    value = line[found.end() :].lstrip("=: \t").rstrip(" \t\r\n")
    return line[: found.start()].lstrip(" \t\r\v\f").rstrip(" \t"), found.group(), value


def _integer(path: Path, field: str, text: str, low: int, high: int) -> int:
    if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
        raise _refused(path, field, f"is {_shown(text)}, not a whole number from {low} to {high}")
    return int(text)


def _sizes(path: Path, field: str, text: str, dimension: int) -> list[int]:
    """The voxels along each axis."""
    words = text.split()
    if len(words) != dimension:
        raise _refused(path, field, f"has {len(words)} numbers for {dimension} dimensions")
    sizes = [_integer(path, field, word, 1, 2**31 - 1) for word in words]
    if math.prod(sizes) > _MOST_VOXELS:
        raise _refused(path, field, "asks for more voxels than any memory holds")
    return sizes


def _numbers(
    path: Path,
    field: str,
    words: Sequence[str],
    *,
    count: int | None = None,
    missing: bool = False,
    largest: float = _LARGEST,
) -> None:
    """Refuse words that are no finite numbers of moderate size; `missing`: "nan" stands for an axis without one."""
    if count is not None and len(words) != count:
        raise _refused(path, field, f"has {len(words)} numbers instead of {count}")
    for word in words:
        if missing and word.lower() == "nan":
            continue
        if not _NUMBER.fullmatch(word):
            raise _refused(path, field, f"holds {_shown(word)}, which is not a finite number")
        if not abs(float(word)) <= largest or math.isinf(float(word)):
            raise _refused(path, field, f"holds {_shown(word)}, which is too large to be true")


def _data_file(path: Path, field: str, name: str, *, packed_suffixes: Sequence[str] = ("",)) -> Path:
    """The file of voxels beside the header `path`. Patterns, lists and paths are refused: they could lead anywhere,
    and ITK uses a percent sign as the start of a format."""
    advice = "Put the file of voxels beside the header, give it a plain name, and write that name into the header."
    if "%" in name:
        advice = "Rename the file of voxels so that its name has no percent sign, and correct the name in the header."
        raise _refused(path, field, f"is {_shown(name)}, which has a percent sign", advice)
    if name.startswith(("LIST", "SKIPLIST")):
        advice = "Save the scan as one file; a single file of voxels must have a name that does not start with LIST."
        raise _refused(path, field, f"is {_shown(name)}, a list of files", advice)
    if (
        name in ("", "-", ".", "..")
        or len(os.fsencode(name)) > _META_TEXT_BYTES
        or any(sign in '/\\:"*?<>|' or sign < " " for sign in name)
    ):
        raise _refused(path, field, f"is {_shown(name)}, not the plain name of a file beside the header", advice)
    for suffix in packed_suffixes:
        if (data := path.with_name(name + suffix)).is_file():
            if os.path.samefile(data, path):
                raise _refused(path, field, "names the header itself", advice)
            return data
    raise InputError(
        "file_missing",
        f"{path} cannot be read: the header field '{field}' names {_shown(name)}, which is not beside it.",
        "Put the header and the file of voxels into one folder, and leave their names as they were saved.",
    )


def _check_room(path: Path, data: Path, needed: int, *, packed: bool) -> None:
    """Refuse a header that asks for more bytes of voxels than its file can hold, before memory is taken for them."""
    if needed > data.stat().st_size * (_DEFLATE_RATIO if packed else 1):
        raise _cut_short(path)


def _cut_short(path: Path) -> InputError:
    return InputError("file_truncated", f"The file {path} is cut short or damaged.", "Copy or export it again.")


def _refused(
    path: Path, field: str, reason: str, advice: str = "Export the scan again, or correct this line of its header."
) -> InputError:
    field = field if field.startswith("'") else f"'{field}'"
    return InputError("not_a_volume", f"{path} cannot be read: the header field {field} {reason}.", advice)


def _shown(text: str) -> str:
    """The start of a text from a file, in quotes and without control characters."""
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return "'" + "".join(sign if sign.isprintable() else "?" for sign in short) + "'"

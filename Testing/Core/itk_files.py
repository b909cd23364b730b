"""NRRD and MetaImage files with chosen header fields, for the tests of header checks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


NRRD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "6 5 4",
    "space directions": "(1,0,0) (0,2,0) (0,0,3)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(10,20,30)",
}


META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "10 20 30",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "1 2 3",
    "DimSize": "6 5 4",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}


def nrrd(path: Path, *lines: str, voxels: bytes = VOXELS.tobytes(), **fields: str | None) -> Path:
    """A NRRD file with some fields changed (None: left out) and lines added; "_" in a name stands for a space."""
    header = NRRD | {name.replace("_", " "): value for name, value in fields.items()}
    text = ["NRRD0005", *(f"{name}: {value}" for name, value in header.items() if value is not None), *lines, "", ""]
    path.write_bytes("\n".join(text).encode() + voxels)
    return path


def meta(path: Path, *lines: str, voxels: bytes = VOXELS.tobytes(), **fields: str | None) -> Path:
    """A MetaImage file with some fields changed (None: left out); lines are added before the last field."""
    header = [f"{name} = {value}" for name, value in (META | fields).items() if value is not None]
    path.write_bytes(("\n".join([*header[:-1], *lines, header[-1]]) + "\n").encode() + voxels)
    return path

"""Small synthetic DICOM series with any slice positions, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def write_series(
    folder: Path,
    origins: np.ndarray,
    *,
    row: tuple[float, float, float] = (1, 0, 0),
    column: tuple[float, float, float] = (0, 1, 0),
    spacing: tuple[float, float] = (1.0, 1.0),
    size: tuple[int, int] = (40, 32),
    value: Callable[[np.ndarray], np.ndarray] = lambda lps: np.full(lps.shape[:-1], 40),
    uid: str = "1.2.826.0.1.3680043.2.1125.1",
    description: str = "Made up",
    prefix: str = "slice",
    first_number: int = 1,
    modality: str = "CT",
) -> list[Path]:
    """Write a DICOM series, one file for each slice, with a rescale intercept of -1024.

    Args:
        folder: Folder to create.
        origins: (N, 3), the position of the first pixel of each slice in LPS mm.
        row: Direction of rows in LPS.
        column: Direction of columns in LPS.
        spacing: Pixel edges in mm along the row and along the column.
        size: Columns and rows.
        value: Function from positions (..., 3) in LPS mm to HU.
        uid: Series instance UID.
        description: Series description.
        prefix: Beginning of the file names.
        first_number: Instance number of the first slice.
        modality: DICOM modality.

    Returns:
        The files in the order of `origins`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    x, y = np.meshgrid(np.arange(size[0]) * spacing[0], np.arange(size[1]) * spacing[1], indexing="xy")
    files = []
    for index, origin in enumerate(np.asarray(origins, dtype=float)):
        points = origin + x[..., None] * np.array(row, float) + y[..., None] * np.array(column, float)
        image = sitk.GetImageFromArray(np.asarray(value(points)).astype(np.int16))
        image.SetSpacing(spacing)
        tags = _tags(uid, first_number + index, origin, (*row, *column), modality=modality, description=description)
        for key, text in tags.items():
            image.SetMetaData(key, text)
        file = folder / f"{prefix}_{index:03d}.dcm"
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(file))
        writer.Execute(image)
        files.append(file)
    return files


def _tags(
    uid: str, number: int, origin: np.ndarray, orientation: tuple[float, ...], *, modality: str, description: str
) -> dict[str, str]:
    """Return the tags of one slice."""
    return {
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
        "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
        "0008|0018": f"{uid}.{number}",
        "0008|0060": modality,
        "0008|103e": description,
        "0018|0050": "5",
        "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
        "0020|000e": uid,
        "0020|0013": str(number),
        "0020|0032": "\\".join(f"{part:.6f}" for part in origin),
        "0020|0052": "1.2.826.0.1.3680043.2.1125.8",
        "0020|0037": "\\".join(f"{part:.8f}" for part in orientation),
        "0028|1052": "-1024",
        "0028|1053": "1",
    }

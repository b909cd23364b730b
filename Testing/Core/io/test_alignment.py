"""Label maps are brought onto the grid of their image without interpolation."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from volume_files import OBLIQUE, SHAPE, save, scan

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.alignment import align_label_map
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.volume import Geometry, Volume


def test_label_map_on_another_grid_is_refused_with_both_files(tmp_path: Path) -> None:
    image = read_volume(save(tmp_path / "image.nii.gz", scan()))
    same = read_label_map(save(tmp_path / "same.nii.gz", np.ones(SHAPE, np.uint8)))
    assert align_label_map(image, same) is same
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 4.0
    labels = read_label_map(save(tmp_path / "off.nii.gz", np.ones(SHAPE, np.uint8), shifted))
    with pytest.raises(InputError) as caught:
        align_label_map(image, labels)
    assert caught.value.code == "geometry_mismatch"
    assert all(part in caught.value.message for part in ("image.nii.gz", "off.nii.gz", "4 mm"))


def test_label_map_in_another_orientation_is_reoriented_and_padded(tmp_path: Path) -> None:
    image = Volume(scan()[None], Geometry(SHAPE, OBLIQUE))
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[2:5, 1:4, 3] = np.arange(1, 10).reshape(3, 3)
    part = drawn[1:6, 0:5, 2:5].transpose(2, 0, 1)[:, ::-1, :]  # cropped, permuted, flipped
    move = np.array([[0, -1, 0, 5], [0, 0, 1, 0], [1, 0, 0, 2], [0, 0, 0, 1.0]])  # its voxels -> the image's
    stored = Volume(part[None], Geometry(part.shape, OBLIQUE @ move))
    np.testing.assert_array_equal(align_label_map(image, stored).array[0], drawn)
    outside = Volume(part[None], Geometry(part.shape, OBLIQUE @ move @ nib.affines.from_matvec(np.eye(3), [2, 0, 0])))
    with pytest.raises(InputError, match="does not lie"):
        align_label_map(image, outside)
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05, 0, 0))
    with pytest.raises(InputError, match="does not lie"):
        align_label_map(image, Volume(drawn[None], Geometry(SHAPE, OBLIQUE @ turned)))

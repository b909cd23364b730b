"""Labelled cases with ignored voxels: their structures, and the slices that `--ignore-unlabelled-slices` leaves out."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from training_examples import RecordingReporter

from HiEndMAECore.data.cases import Case
from HiEndMAECore.data.labelled_cases import (
    LabelledCase,
    PartialLabels,
    collect_structures,
    ignore_unlabelled_slices,
    read_labelled_case,
)
from HiEndMAECore.errors import InputError
from HiEndMAECore.io.volume import Geometry, Volume
from HiEndMAECore.reporting.reporter import Reporter

SHAPE = (12, 14, 20)


def labelled_case(labels: np.ndarray, *, affine: np.ndarray | None = None, ignore: int | None = None) -> LabelledCase:
    geometry = Geometry(SHAPE, np.eye(4) if affine is None else affine)
    scan = Volume(np.zeros((1, *SHAPE), np.float32), geometry, "p")
    return LabelledCase(scan, Volume(labels[None].astype(np.uint8), geometry, "p"), ignore)


def two_columns() -> np.ndarray:
    """Return two structures side by side along the first axis, over the whole length of the last one."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:9], labels[7:10, 3:9] = 1, 3
    return labels


def every_fourth(labels: np.ndarray) -> np.ndarray:
    return np.where(np.arange(SHAPE[2]) % 4 == 0, labels, 0)


def ignored_slices(case: LabelledCase, axis: int = 2) -> list[int]:
    """Return the slices of which all voxels are ignored; assert that no other voxel is."""
    ignored = np.moveaxis(case.labels.array[0] == case.ignore, axis, 0).reshape(SHAPE[axis], -1)
    assert (ignored.any(1) == ignored.all(1)).all()
    return np.flatnonzero(ignored.all(1)).tolist()


def test_unlabelled_slices_between_labelled_ones_are_ignored_and_counted() -> None:
    report = RecordingReporter()
    case = ignore_unlabelled_slices(labelled_case(every_fourth(two_columns())), "axial", report=report)
    assert case.ignore == 2, "a value that the label map does not use"
    assert ignored_slices(case) == [z for z in range(20) if z % 4]
    assert report.messages == ["p: 5 of 20 axial slices are labelled and count, the others are ignored."]
    assert case.values == {1, 3}
    assert np.array_equal(case.labels.array[0][..., ::4], two_columns()[..., ::4])


def test_unlabelled_slices_beyond_a_slab_are_ignored() -> None:
    labels = two_columns()
    labels[..., :4], labels[..., 12:] = 0, 0
    case = ignore_unlabelled_slices(labelled_case(labels), "axial", report=Reporter(quiet=True))
    assert ignored_slices(case) == [*range(4), *range(12, 20)]


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 2), ("coronal", 0), ("axial", 1)])
def test_slices_of_a_plane_are_those_across_its_axis(plane: str, axis: int) -> None:
    """The stored axes run to posterior, to superior and, tilted, to the left."""
    affine = np.array([[0, 0.2, -2, 5], [-1, 0, 0.3, 5], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    labels = np.zeros(SHAPE, np.uint8)
    np.moveaxis(labels, axis, 0)[::3, 4:8, 5:9] = 1
    case = ignore_unlabelled_slices(labelled_case(labels, affine=affine), plane, report=Reporter(quiet=True))
    assert ignored_slices(case, axis) == [index for index in range(SHAPE[axis]) if index % 3]


def test_the_own_ignore_value_is_used_and_its_slices_are_not_labelled() -> None:
    labels = every_fourth(two_columns())
    labels[0, 0, 1], labels[0, 0, 4] = 200, 200
    case = ignore_unlabelled_slices(labelled_case(labels, ignore=200), "axial", report=Reporter(quiet=True))
    assert case.ignore == 200
    assert (case.labels.array[0][..., 1] == 200).all()
    assert (case.labels.array[0][..., 4] == 200).sum() == 1


def test_the_ignore_value_is_no_structure() -> None:
    labels = two_columns()
    labels[0] = 9
    assert [structure.value for structure in collect_structures([labelled_case(labels, ignore=9)])] == [1, 3]
    assert [structure.value for structure in collect_structures([labelled_case(labels)])] == [1, 3, 9]


def test_a_label_map_of_ignored_voxels_alone_is_refused(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[0] = 9
    for name in ("scan", "labels"):
        nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    case = Case("p", (tmp_path / "scan.nii.gz",), tmp_path / "labels.nii.gz")
    with pytest.raises(InputError, match=r"only background and ignored voxels \(9\)"):
        read_labelled_case(case, report=Reporter(quiet=True), partial=PartialLabels(ignore=9))
    assert read_labelled_case(case, report=Reporter(quiet=True)).values == {9}

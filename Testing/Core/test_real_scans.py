"""Real scans are read and preprocessed, and their labels return to exactly the voxels of the scan."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from geometries import dice, world_of_grid, world_of_voxels

from HiEndMAECore.data.cases import find_cases
from HiEndMAECore.data.datasets import read_dataset
from HiEndMAECore.io.alignment import align_label_map
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.io.writers import write_label_map
from HiEndMAECore.preprocessing.intensity import suggest_normalization
from HiEndMAECore.preprocessing.pipeline import (
    PreprocessingPlan,
    preprocess,
    preprocess_labels,
    resample_labels_to_original,
)

PAIRS = {
    "abdomen/ct_abdomen_A/ct.nii.gz": ("abdomen/ct_abdomen_A/seg_total.nii.gz", "window", 0.99),
    "abdomen/ct_chest_B/ct.nii.gz": ("abdomen/ct_chest_B/seg_heart.nii.gz", "window", 0.95),
    "abdomen/ct_chest_B/crop/ct_cropped.nii.gz": ("abdomen/ct_chest_B/crop/aorta.nii.gz", "window", 0.9),
    "abdomen/mr_D/mr.nii.gz": ("abdomen/mr_D/seg_total_mr.nii.gz", "percentiles", 0.99),
    "robustness/dicom_jpeg2000/dicom": ("robustness/dicom_jpeg2000/seg_total.nii.gz", "window", 0.9),
    "robustness/orientation_pir/sub-ct_label-22_ct.nii.gz": (
        "robustness/orientation_pir/sub-ct_seg-vert_label-22_msk.nii.gz",
        "window",
        0.85,
    ),
    "robustness/orientation_pir/sub-mri_label-6_T2w.nii.gz": (
        "robustness/orientation_pir/sub-mri_seg-vert_label-6_msk.nii.gz",
        "percentiles",
        0.8,
    ),
}


@pytest.mark.parametrize("image", PAIRS)
def test_labels_of_real_scans_return_to_the_original_grid(real_data: Path, image: str) -> None:
    label, kind, min_dice = PAIRS[image]
    volume, labels = read_volume(real_data / image), read_label_map(real_data / label)
    assert suggest_normalization(volume).kind == kind
    scan = preprocess(volume, PreprocessingPlan((3.0, 3.0, 3.0), suggest_normalization(volume)))
    assert 0.05 < scan.array.mean() < 0.95
    assert nib.aff2axcodes(scan.affine) == ("R", "A", "S")
    result = resample_labels_to_original(preprocess_labels(labels, scan), scan)
    assert result.shape == volume.shape
    reference = align_label_map(volume, labels).array[0]
    assert dice(result > 0, reference > 0) > min_dice
    sizes = np.bincount(reference.ravel())
    for value in np.flatnonzero(sizes * volume.geometry.voxel_ml > 60):
        assert dice(result == value, reference == value) > min_dice - 0.1


def test_align_label_map_reorders_labels_of_another_orientation(real_data: Path) -> None:
    volume = read_volume(real_data / "robustness/dicom_jpeg2000/dicom")
    labels = read_label_map(real_data / "robustness/dicom_jpeg2000/seg_total.nii.gz")
    assert not volume.geometry.matches(labels.geometry)
    assert volume.geometry.matches(align_label_map(volume, labels).geometry)
    tissue = volume.array[0][align_label_map(volume, labels).array[0] == 5]  # liver
    assert 0 < np.median(tissue) < 150


def test_preprocess_of_a_tilted_series_resamples_to_true_positions(real_data: Path, tmp_path: Path) -> None:
    volume = read_volume(real_data / "robustness/dicom_gantry_tilt/dicom")
    assert volume.shape == (512, 512, 28)
    assert [note["code"] for note in volume.notes] == ["gantry_tilt", "uneven_slices"]
    assert "18.5 degrees" in volume.notes[0]["message"]
    assert "1.1 to 7.4 mm" in volume.notes[1]["message"]
    np.testing.assert_allclose(volume.spacing, (0.4882812, 0.4882812, 5.6274), atol=1e-4)
    scan = preprocess(volume, PreprocessingPlan((1.5, 1.5, 1.5)), crop=False)
    head = (scan.array[0] > 0.3).astype(np.uint8)
    result = resample_labels_to_original(head, scan)
    original_head = volume.array[0] > -175 + 0.3 * 425
    assert dice(result > 0, original_head) > 0.93
    center = world_of_grid(scan.affine, scan.shape)[head > 0].mean(axis=0)
    thickness = np.gradient(volume.geometry.slice_origins[:, 2])[np.nonzero(original_head)[2]]
    expected = np.average(world_of_voxels(volume.geometry)[original_head], axis=0, weights=thickness)
    assert np.linalg.norm(expected - center) < 1.5
    write_label_map(tmp_path / "head.nii.gz", result, volume.geometry)
    assert volume.geometry.matches(read_label_map(tmp_path / "head.nii.gz").geometry)


def test_preprocess_of_a_padded_scan_crops_to_the_body(real_data: Path) -> None:
    volume = read_volume(real_data / "robustness/anisotropic_padding_abdomen_ct.nii.gz")
    assert suggest_normalization(volume).kind == "window"
    scan = preprocess(volume, PreprocessingPlan((1.5, 1.5, 1.5)))
    whole = preprocess(volume, PreprocessingPlan((1.5, 1.5, 1.5)), crop=False)
    assert scan.array[0].size < 0.7 * whole.array[0].size
    assert (scan.array > 0.3).sum() > 0.96 * (whole.array > 0.3).sum()  # without the table, which is 3 % of it


def test_suggest_normalization_of_ct_and_mri_data_sets_chooses_the_right_kind(real_data: Path) -> None:
    for folder, kind in (("Dataset101_OpenKBP", "window"), ("Dataset104_Hippocampus", "percentiles")):
        dataset = read_dataset(real_data / folder)
        assert dataset.structures
        for case in dataset.cases[:8]:
            volume = read_volume(case.channels)
            assert volume.geometry.matches(read_label_map(case.label).geometry)
            assert suggest_normalization(volume).kind == kind, case.name
            assert volume.name == case.name


def test_find_cases_in_a_folder_names_series_and_files(real_data: Path) -> None:
    names = {case.name for case in find_cases([real_data / "robustness"])}
    assert {"dicom_gantry_tilt_dicom", "dicom_jpeg2000_dicom", "anisotropic_padding_abdomen_ct"} <= names

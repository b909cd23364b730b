"""Segmentation of real scans: results have the shape and affine of the scan, in every format and orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inference_helpers import segment_config, write_untrained_model

from HiEndMAECore.data.cases import find_cases
from HiEndMAECore.io.readers import read_label_map, read_volume
from HiEndMAECore.reporting.reporter import Reporter
from HiEndMAECore.segment import run

SCANS = (
    "robustness/dicom_gantry_tilt",
    "robustness/dicom_jpeg2000/dicom",
    "robustness/orientation_pir",
    "robustness/anisotropic_padding_abdomen_ct.nii.gz",
    "abdomen/ct_abdomen_A/ct.nii.gz",
    "abdomen/ct_chest_B/ct.nii.gz",
    "abdomen/ct_chest_B/crop/ct_cropped.nii.gz",
    "abdomen/mr_D/mr.nii.gz",
    "Dataset101_OpenKBP/imagesTr",
    "Dataset101_OpenKBP/imagesUnlabelled",
    "Dataset104_Hippocampus/imagesTr",
)
MAX_CASES = 4  # of a data set, whose scans are alike


@pytest.mark.parametrize("source", SCANS)
def test_real_scan_result_has_its_shape_and_affine(tmp_path: Path, real_data: Path, source: str) -> None:
    if not (real_data / source).exists():
        pytest.skip(f"there is no {source}")
    model = write_untrained_model(tmp_path / "model")
    cases, report = find_cases([real_data / source]), Reporter(quiet=True)
    assert cases
    for case in cases[:MAX_CASES]:
        scan, output = case.channels[0], tmp_path / f"{case.name}.nii.gz"
        run(segment_config(model, scan, output, spacing=(12.0, 12.0, 12.0)), report)
        original, result = read_volume(case.channels), read_label_map(output, allow_empty=True)
        assert result.shape == original.shape
        np.testing.assert_allclose(result.affine, original.affine, atol=1e-3)
    codes = {warning["code"] for warning in report.warnings}
    assert ({"gantry_tilt", "uneven_slices"} <= codes) == (source == "robustness/dicom_gantry_tilt")

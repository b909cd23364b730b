"""Cases are found among files, folders and lists, with unique names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dataset_files import touch
from dicom_series import write_series

from HiEndMAECore.data.cases import find_cases
from HiEndMAECore.errors import InputError


def found(*inputs: Path) -> dict[str, list[str]]:
    return {case.name: [path.name for path in case.channels] for case in find_cases(inputs)}


def test_find_cases_in_a_folder_finds_all_below(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.nii.gz", "a/c.nrrd", "a/deep/d.mha", "a/e.seg.nrrd", "f.hdr", "f.img", "readme.md", ".hidden.nii"
    )
    touch(tmp_path, "labelsTr/b.nii.gz", ".cache/x.nii.gz")
    write_series(tmp_path / "patient 7", np.zeros((1, 3)))
    assert found(tmp_path) == {
        "b": ["b.nii.gz"],
        "c": ["c.nrrd"],
        "d": ["d.mha"],
        "e": ["e.seg.nrrd"],
        "f": ["f.hdr"],
        "patient 7": ["patient 7"],
    }
    assert "c" not in {case.name for case in find_cases([tmp_path], exclude=(tmp_path / "a").resolve())}


def test_find_cases_joins_channels_of_one_case(tmp_path: Path) -> None:
    touch(tmp_path, "P_0001.nii.gz", "P_0000.nii.gz", "Q_0000.nii.gz", "x/P_0000.nii.gz")
    cases = find_cases([tmp_path])
    assert sorted(len(case.channels) for case in cases) == [1, 1, 2]
    both = next(case for case in cases if len(case.channels) == 2)
    assert [path.name for path in both.channels] == ["P_0000.nii.gz", "P_0001.nii.gz"]
    assert "Q" in {case.name for case in cases}


def test_find_cases_takes_numbers_of_patients_for_names(tmp_path: Path) -> None:
    touch(tmp_path, "case_0012.nii.gz", "case_0013.nii.gz", "visit_2019.nii.gz")
    assert list(found(tmp_path)) == ["case_0012", "case_0013", "visit_2019"]


def test_find_cases_reads_lists(tmp_path: Path) -> None:
    touch(tmp_path, "scans/a.nii.gz", "scans/b.nii.gz", "c.nii.gz")
    (tmp_path / "list.txt").write_text("scans/b.nii.gz\n\n  c.nii.gz  \n", encoding="utf-8")
    assert list(found(tmp_path / "list.txt")) == ["b", "c"]
    assert list(found(tmp_path / "list.txt", tmp_path / "scans")) == ["a", "b", "c"]  # b once
    (tmp_path / "bad.txt").write_text("nowhere.nii.gz\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"nowhere\.nii\.gz"):
        find_cases([tmp_path / "bad.txt"])


def test_find_cases_makes_equal_names_unique(tmp_path: Path) -> None:
    touch(tmp_path, "one/visit 1/ct.nii.gz", "two/visit 1/ct.nii.gz", "two/mr.nii.gz", "two/mr.nrrd", "three.nii.gz")
    names = [case.name for case in find_cases([tmp_path])]
    assert sorted(names) == ["mr_nii_gz", "mr_nrrd", "one_visit_1_ct", "three", "two_visit_1_ct"]


def test_find_cases_takes_the_folder_of_a_dicom_file(tmp_path: Path) -> None:
    files = write_series(tmp_path / "ct", np.array([[0, 0, 0], [0, 0, 2.0]]))
    assert found(files[0], files[1]) == {"ct": ["ct"]}


def test_find_cases_without_a_scan_is_refused(tmp_path: Path) -> None:
    for inputs in ([tmp_path], []):
        with pytest.raises(InputError) as caught:
            find_cases(inputs)
        assert caught.value.code == "no_scans"
    with pytest.raises(InputError) as caught:
        find_cases([touch(tmp_path, "a.pdf") / "a.pdf"])
    assert caught.value.code == "not_a_volume"

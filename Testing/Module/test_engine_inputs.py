"""Scans from outside the scene in the queue: files of a folder, series of the DICOM database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_help import NAMES, wait

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def ready(module: Any, shared_model: Path) -> Any:
    """Return the module with a model in its library."""
    module.session.library.import_model(shared_model)
    module.session.models_changed()
    return module


@pytest.fixture
def files(patient: Callable[..., Any], tmp_path: Path) -> Path:
    """Return a folder whose name is not ASCII, with two scans, a broken scan and other files."""
    import slicer
    from HiEndMAESegmentationLib.scene import export

    folder = tmp_path / "Fälle neu"
    folder.mkdir()
    for seed in (1, 2):
        export.write_scan(patient(seed, "x")[0], folder / f"CT {seed}.nii")
    (folder / "broken.nii.gz").write_bytes(b"no scan")
    (folder / "notes.txt").write_text("no scan either", encoding="utf-8")
    (folder / "Segmentation.seg.nrrd").write_bytes(b"what Slicer saves beside a scan")
    slicer.mrmlScene.Clear(0)
    return folder


def names(panel: Any) -> list[str]:
    return [panel.ui.casesTable.item(row, 0).text() for row in range(panel.ui.casesTable.rowCount)]


def test_folder_inputs_are_loaded_one_by_one_and_broken_ones_fail(
    ready: Any, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scan is loaded when its turn comes; the broken one fails with a message; names are those of the files."""
    import qt
    import slicer

    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(files))
    panel = ready.apply
    panel.ui.folderButton.click()
    assert names(panel) == ["CT 1.nii", "CT 2.nii", "broken.nii.gz"]
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
    panel.ui.applyButton.click()
    wait(lambda: not panel.queue.running)
    assert [case.state for case in panel.queue.cases] == ["done", "done", "failed"]
    assert "'broken.nii.gz' could not be loaded" in panel.strip.ui.messageLabel.text
    assert names(panel) == ["CT 1", "CT 2", "broken.nii.gz"]
    assert ready.session.parameters.offered == [str(files / "broken.nii.gz")]
    assert [node.GetName() for node in panel.queue.results] == ["CT 1 - Bauch", "CT 2 - Bauch"]
    assert panel.queue.results[0].GetSegmentation().GetNumberOfSegments() == len(NAMES)
    assert panel.ui.retryButton.isVisibleTo(ready.parent)


def test_dicom_series_are_listed_without_patient_names_and_segmented(
    ready: Any, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CT and MR series are listed, not ticked; the one that the user ticks is segmented."""
    import qt
    import slicer
    from stand_in.dicom import ctkDICOMDatabase

    database = ctkDICOMDatabase()
    monkeypatch.setattr(slicer, "dicomDatabase", database)
    ready.apply.ui.dicomButton.click()
    assert "no CT and no MR" in ready.apply.strip.ui.messageLabel.text
    for series, modality in (("1.2.3", "CT"), ("1.2.4", "SR")):
        database.enter(
            series,
            patient="Secret^Name",
            study="1.2",
            files=[str(files / "CT 1.nii")],
            Modality=modality,
            SeriesDescription="abdomen",
            StudyDate="20260102",
            PatientID="7",
        )
    calls: list[str] = []
    count = database.filesForSeries
    monkeypatch.setattr(database, "filesForSeries", lambda series: calls.append(series) or count(series))
    monkeypatch.setattr("HiEndMAESegmentationLib.engine.inputs._series_texts", {})
    ready.apply.ui.dicomButton.click()
    assert names(ready.apply) == ["abdomen (DICOM, 1 files)"]
    assert ready.apply.ui.casesTable.item(0, 0).toolTip() == "Study of 20260102, patient ID 7"
    for _ in range(3):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    assert calls == ["1.2.3"]  # although the list was drawn several times
    assert not ready.apply.ui.applyButton.enabled
    ready.apply.ui.casesTable.item(0, 0).setCheckState(qt.Qt.Checked)
    assert ready.session.parameters.sources == ["dicom:1.2.3"]
    ready.apply.ui.applyButton.click()
    wait(lambda: not ready.apply.queue.running)
    assert [case.state for case in ready.apply.queue.cases] == ["done"]


def test_folder_without_scans_gives_a_message(ready: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    ready.apply.ui.folderButton.click()
    assert "holds no NIfTI" in ready.apply.strip.ui.messageLabel.text


@pytest.mark.parametrize("error", [OSError("its files are gone"), ValueError("no such series"), KeyError("Rows")])
def test_series_whose_loading_raises_does_not_stop_the_queue(
    error: Exception, ready: Any, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slicer's plugins raise exceptions of many kinds. DICOMLib is the stand-in's, because the real one needs Slicer."""
    from DICOMLib import DICOMUtils

    def broken(_uids: list[str]) -> list[str]:
        raise error

    monkeypatch.setattr(DICOMUtils, "loadSeriesByUID", broken)
    ready.session.parameters.offered = ready.session.parameters.sources = ["dicom:1.2.3", str(files / "CT 1.nii")]
    ready.apply.ui.applyButton.click()
    wait(lambda: not ready.apply.queue.running)
    assert [case.state for case in ready.apply.queue.cases] == ["failed", "done"]
    assert "'1.2.3 (DICOM, 0 files)' was not: " in ready.apply.strip.ui.messageLabel.text

"""Scans that are not in the scene yet: files of a folder and series of the DICOM database.

Each one is loaded when its turn comes. An input is a string, so that a scene can store it: the path of a file, or "dicom:"
and the instance UID of a series.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAECore.errors import InputError

DICOM_PREFIX = "dicom:"  # saved scenes hold it
_SCAN_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_MODALITIES = ("CT", "MR")
_series_texts: dict[str, tuple[str, str]] = {}  # name and tooltip of each series, cached


def inputs_in_folder(folder: Path) -> list[str]:
    """Return the scans directly in `folder`, by name.

    Raises:
        InputError: The folder cannot be read, or holds no scan.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and _is_scan(path))
    except OSError as error:
        message = _("The folder {folder} cannot be read ({reason}).").format(folder=folder, reason=error.strerror)
        raise InputError("folder_unreadable", message, _("Choose another one.")) from error
    if not files:
        message = _("The folder {folder} holds no NIfTI, NRRD or MetaImage file.").format(folder=folder)
        raise InputError("folder_empty", message, _("Import a DICOM folder into Slicer's DICOM database first."))
    return [str(path) for path in files]


def _is_scan(path: Path) -> bool:
    """Return whether the file name is that of a scan; segmentations that Slicer saved beside a scan are not."""
    name = path.name.lower()
    return name.endswith(_SCAN_SUFFIXES) and not name.endswith(".seg.nrrd") and not name.startswith(".")


def inputs_in_database() -> list[str]:
    """Return the CT and MR series of Slicer's DICOM database.

    Raises:
        InputError: The database is not open, or holds no such series.
    """
    database = slicer.dicomDatabase
    if database is None or not database.isOpen:
        raise InputError("dicom_closed", _("Slicer's DICOM database is not open."), _("Open the module DICOM once."))
    inputs = []
    for patient in database.patients():
        for study in database.studiesForPatient(patient):
            for series in database.seriesForStudy(study):
                if database.fieldForSeries("Modality", series) in _MODALITIES:
                    inputs.append(DICOM_PREFIX + series)
    if not inputs:
        message = _("Slicer's DICOM database holds no CT and no MR series.")
        raise InputError("dicom_empty", message, _("Import some in the module DICOM."))
    return inputs


def name_of(source: str) -> str:
    """Return the name of an input in the list of scans; it is never the patient's name."""
    if not source.startswith(DICOM_PREFIX):
        return Path(source).name
    texts = _texts_of_series(source)
    return source.removeprefix(DICOM_PREFIX) if texts is None else texts[0]


def tooltip_of(source: str) -> str:
    """Return what distinguishes inputs of one name: the folder of a file, date and patient ID of a series."""
    if not source.startswith(DICOM_PREFIX):
        return str(Path(source).parent)
    texts = _texts_of_series(source)
    return "" if texts is None else texts[1]


def _texts_of_series(source: str) -> tuple[str, str] | None:
    """Return name and tooltip of a series, or None while the database is closed.

    The texts are cached, because the list of scans is drawn again and again.
    """
    database, series = slicer.dicomDatabase, source.removeprefix(DICOM_PREFIX)
    if database is None or not database.isOpen:
        return None
    if source not in _series_texts:
        description = database.descriptionForSeries(series) or database.fieldForSeries("Modality", series) or series
        count = len(database.filesForSeries(series))
        study = database.studyForSeries(series)
        date = database.fieldForStudy("StudyDate", study)
        patient = database.fieldForPatient("PatientID", database.patientForStudy(study))
        tooltip = _("Study of {date}, patient ID {patient}").format(date=date or "?", patient=patient or "?")
        _series_texts[source] = (_("{name} (DICOM, {count} files)").format(name=description, count=count), tooltip)
    return _series_texts[source]


def load_input(source: str) -> Any:
    """Load an input as a volume node of the scene.

    Raises:
        InputError: It cannot be read, or is no scan with one channel.
    """
    advice = _("Was it moved or deleted?")
    if source.startswith(DICOM_PREFIX):
        from DICOMLib import DICOMUtils

        try:
            ids = DICOMUtils.loadSeriesByUID([source.removeprefix(DICOM_PREFIX)])
        except (OSError, ValueError):  # for example, its files are gone
            ids = []
        nodes = [slicer.mrmlScene.GetNodeByID(node_id) for node_id in ids]
        volume = next((node for node in nodes if node is not None and node.IsA("vtkMRMLScalarVolumeNode")), None)
    elif not Path(source).is_file():
        volume = None
    else:
        advice = _("Is it a scan with one channel?")
        # `slicer.util.loadVolume` would change what the slice views show.
        name = Path(source.removesuffix(".gz")).stem
        volume = slicer.modules.volumes.logic().AddArchetypeVolume(source, name)
    if volume is None or volume.GetClassName() != "vtkMRMLScalarVolumeNode":
        if volume is not None:
            slicer.mrmlScene.RemoveNode(volume)
        message = _("'{name}' could not be loaded.").format(name=name_of(source))
        raise InputError("scan_unreadable", message, advice)
    return volume

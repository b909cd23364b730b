"""Scans that are not in the scene yet: files of a folder, series of the DICOM database. Each is loaded at its turn.

A source is a string, so that a scene can remember it: the path of a file, or "dicom:" and the series' instance UID.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from HiEndMAECore.errors import InputError

DICOM = "dicom:"
_SCANS = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_MODALITIES = ("CT", "MR")
_KNOWN: dict[str, tuple[str, str]] = {}  # name and hint of a series


def in_folder(folder: Path) -> list[str]:
    """The scans that lie in `folder` itself, by name. Raises `InputError` where there is none."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and _is_scan(path))
    except OSError as error:
        told = _("The folder {folder} cannot be read ({reason}).").format(folder=folder, reason=error.strerror)
        raise InputError("folder_unreadable", told, _("Choose another one.")) from error
    if not files:
        told = _("The folder {folder} holds no NIfTI, NRRD or MetaImage file.").format(folder=folder)
        raise InputError("folder_empty", told, _("Import a DICOM folder into Slicer's DICOM database first."))
    return [str(path) for path in files]


def _is_scan(path: Path) -> bool:
    """By its name; a segmentation that Slicer saved beside the scan is none."""
    name = path.name.lower()
    return name.endswith(_SCANS) and not name.endswith(".seg.nrrd") and not name.startswith(".")


def in_database() -> list[str]:
    """CT and MR series of Slicer's DICOM database. Raises `InputError` where there is none."""
    database = slicer.dicomDatabase
    if database is None or not database.isOpen:
        raise InputError("dicom_closed", _("Slicer's DICOM database is not open."), _("Open the module DICOM once."))
    found = []
    for patient in database.patients():
        for study in database.studiesForPatient(patient):
            for series in database.seriesForStudy(study):
                if database.fieldForSeries("Modality", series) in _MODALITIES:
                    found.append(DICOM + series)
    if not found:
        told = _("Slicer's DICOM database holds no CT and no MR series.")
        raise InputError("dicom_empty", told, _("Import some in the module DICOM."))
    return found


def name_of(source: str) -> str:
    """What the list of scans calls it; never the patient's name."""
    if not source.startswith(DICOM):
        return Path(source).name
    told = _told(source)
    return source.removeprefix(DICOM) if told is None else told[0]


def hint_of(source: str) -> str:
    """What tells series of one name apart, for who points at them: the folder of a file, date and ID of a series."""
    if not source.startswith(DICOM):
        return str(Path(source).parent)
    told = _told(source)
    return "" if told is None else told[1]


def _told(source: str) -> tuple[str, str] | None:
    """(name, hint) of a series, None while the database is closed. Asked once: the list is shown again and again."""
    database, series = slicer.dicomDatabase, source.removeprefix(DICOM)
    if database is None or not database.isOpen:
        return None
    if source not in _KNOWN:
        described = database.descriptionForSeries(series) or database.fieldForSeries("Modality", series) or series
        count = len(database.filesForSeries(series))
        study = database.studyForSeries(series)
        date = database.fieldForStudy("StudyDate", study)
        patient = database.fieldForPatient("PatientID", database.patientForStudy(study))
        hint = _("Study of {date}, patient ID {patient}").format(date=date or "?", patient=patient or "?")
        _KNOWN[source] = (_("{name} (DICOM, {count} files)").format(name=described, count=count), hint)
    return _KNOWN[source]


def load(source: str) -> Any:
    """The scan as a volume node of the scene. Raises `InputError` when it cannot be read."""
    advice = _("Was it moved or deleted?")
    if source.startswith(DICOM):
        from DICOMLib import DICOMUtils

        try:
            ids = DICOMUtils.loadSeriesByUID([source.removeprefix(DICOM)])
        except (OSError, ValueError):  # its files are gone, say
            ids = []
        nodes = [slicer.mrmlScene.GetNodeByID(node_id) for node_id in ids]
        volume = next((node for node in nodes if node is not None and node.IsA("vtkMRMLScalarVolumeNode")), None)
    elif not Path(source).is_file():
        volume = None
    else:
        advice = _("Is it a scan with one channel?")
        # The logic, not `slicer.util.loadVolume`: that one changes what the slice views show.
        name = Path(source.removesuffix(".gz")).stem
        volume = slicer.modules.volumes.logic().AddArchetypeVolume(source, name)
    if volume is None or volume.GetClassName() != "vtkMRMLScalarVolumeNode":
        if volume is not None:
            slicer.mrmlScene.RemoveNode(volume)
        told = _("'{name}' could not be loaded.").format(name=name_of(source))
        raise InputError("scan_unreadable", told, advice)
    return volume

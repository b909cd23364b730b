"""The parts of `slicer.dicomDatabase` and `DICOMLib` that the module uses. Files are added by the test; no header is read."""

from __future__ import annotations

import sys
import types
from typing import Any

import slicer


class ctkDICOMDatabase:
    """A database with the methods of the real one, and `enter` for tests."""

    def __init__(self) -> None:
        self.isOpen = True
        self._series: dict[str, tuple[str, str, dict[str, str], list[str]]] = {}

    def enter(self, series: str, *, patient: str, study: str, files: list[str], **fields: str) -> None:
        """Add a series with its files and fields, such as SeriesDescription="abdomen"."""
        self._series[series] = (patient, study, fields, files)

    def patients(self) -> list[str]:
        return list(dict.fromkeys(entry[0] for entry in self._series.values()))

    def studiesForPatient(self, patient: str) -> list[str]:
        return list(dict.fromkeys(entry[1] for entry in self._series.values() if entry[0] == patient))

    def seriesForStudy(self, study: str) -> list[str]:
        return [series for series, entry in self._series.items() if entry[1] == study]

    def filesForSeries(self, series: str) -> list[str]:
        return self._series[series][3] if series in self._series else []

    def fieldForSeries(self, field: str, series: str) -> str:
        return self._series[series][2].get(field, "") if series in self._series else ""

    def studyForSeries(self, series: str) -> str:
        return self._series[series][1] if series in self._series else ""

    def patientForStudy(self, study: str) -> str:
        return next((entry[0] for entry in self._series.values() if entry[1] == study), "")

    def fieldForStudy(self, field: str, study: str) -> str:
        return next((entry[2].get(field, "") for entry in self._series.values() if entry[1] == study), "")

    def fieldForPatient(self, field: str, patient: str) -> str:
        return next((entry[2].get(field, "") for entry in self._series.values() if entry[0] == patient), "")

    def descriptionForSeries(self, series: str) -> str:
        return self.fieldForSeries("SeriesDescription", series)


def loadSeriesByUID(uids: list[str]) -> list[str]:
    """Load the series, and return the IDs of their nodes."""
    logic = slicer.modules.volumes.logic()
    nodes = [logic.AddArchetypeVolume(slicer.dicomDatabase.filesForSeries(uid)[0], uid) for uid in uids]
    return [node.GetID() for node in nodes if node is not None]


def install() -> None:
    """Make the database and `DICOMLib` available to modules."""
    slicer.dicomDatabase = ctkDICOMDatabase()
    package: Any = types.ModuleType("DICOMLib")
    package.DICOMUtils = types.SimpleNamespace(loadSeriesByUID=loadSeriesByUID)
    sys.modules["DICOMLib"] = package

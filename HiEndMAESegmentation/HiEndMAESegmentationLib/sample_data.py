"""Offer a scan to try the module on in Slicer's Sample Data; Slicer downloads it only when the user clicks it."""

from __future__ import annotations

from slicer.i18n import tr as _

from HiEndMAESegmentationLib import MODULE_FOLDER

# Slicer's own sample of an abdominal CT (Medical Segmentation Decathlon, liver_100, CC BY-SA 4.0), named by its SHA-256.
_SHA256 = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"
_URL = f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{_SHA256}"
_ICON = MODULE_FOLDER / "Resources" / "Icons" / "HiEndMAESegmentation.png"


def register() -> None:
    """Register the scan under the module's name; to be called when Slicer has loaded all modules."""
    try:
        import SampleData
    except ImportError:  # this Slicer was built without the module
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="HiEndMAE",
        sampleName=_("Abdomen to segment"),
        thumbnailFileName=str(_ICON),
        uris=_URL,
        fileNames="CTLiver.nrrd",
        nodeNames=_("Abdomen"),
        checksums=f"SHA256:{_SHA256}",
    )

"""A scan to try the module on, in Slicer's Sample Data: downloaded by Slicer when somebody clicks it, never before."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

# Slicer's own sample of an abdominal CT (Medical Segmentation Decathlon, liver_100, CC BY-SA 4.0), named by its SHA-256.
_SHA256 = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"
_URL = f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{_SHA256}"
_ICON = Path(__file__).resolve().parents[1] / "Resources" / "Icons" / "HiEndMAESegmentation.png"


def register() -> None:
    """Offer the scan under the module's name. Called once Slicer's other modules are there."""
    try:
        import SampleData
    except ImportError:  # a Slicer that was built without it
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

"""Every choice that the user makes in the panels. It is stored in the scene, so that a saved scene restores it."""
# No `from __future__ import annotations` here: the wrapper reads the annotations themselves.

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper


@parameterNodeWrapper
class Parameters:
    """The choices of the four panels. Their names are stored in scenes, and never change.

    Train: `teachVolume` and `teachSegmentation` are the labelled scan; `leftOut` are IDs of segments to exclude from
    training; `budget` is a key of `HiEndMAECore.finetune.BUDGETS`; `start` is "" (the first of the list), "none", the name
    of packaged weights, or the path of a model or of an authors' file; `modelName` is the name of the new model; `keepAtlas`
    lets new models, also those of *Improve*, keep an atlas of their labelled scans.

    Apply: `model` is the key, in the library, of the model to segment with; `targets` are the scans to segment; `offered`
    are listed scans outside the scene (see `engine.inputs`), and `sources` those of them to segment.

    Improve: `corrected` is the result that the user corrected.
    """

    teachVolume: vtkMRMLScalarVolumeNode
    teachSegmentation: vtkMRMLSegmentationNode
    leftOut: list[str]
    budget: str = "5min"
    start: str = ""
    modelName: str = ""
    keepAtlas: bool = True
    model: str = ""
    targets: list[vtkMRMLScalarVolumeNode]
    offered: list[str]
    sources: list[str]
    show3D: bool = True
    keepLargest: bool = False
    uncertainty: bool = True
    corrected: vtkMRMLSegmentationNode
    device: str = "auto"

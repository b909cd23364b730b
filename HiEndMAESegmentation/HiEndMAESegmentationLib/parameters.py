"""Every choice of the panels, kept in the scene: whoever saves and loads a scene finds it as it was."""
# No `from __future__ import annotations` here: the wrapper reads the annotations themselves.

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper


@parameterNodeWrapper
class Parameters:
    """Choices of the four steps.

    teachVolume, teachSegmentation: the labelled scan. leftOut: IDs of segments that are not to be learned.
    budget: a key of `HiEndMAECore.finetune.BUDGETS`. start: "" (the first of the list), "none", the name of
    weights in the box, or the path of a model or an authors' file.
    modelName: what the new model will be called. model: folder name, in the library, of the model to apply.
    targets: the scans to segment. offered: scans outside the scene that are listed (see `sources`); sources: those of
    them to segment. corrected: the result that was put right by hand.
    """

    teachVolume: vtkMRMLScalarVolumeNode
    teachSegmentation: vtkMRMLSegmentationNode
    leftOut: list[str]
    budget: str = "5min"
    start: str = ""
    modelName: str = ""
    model: str = ""
    targets: list[vtkMRMLScalarVolumeNode]
    offered: list[str]
    sources: list[str]
    show3D: bool = True
    keepLargest: bool = False
    uncertainty: bool = True
    corrected: vtkMRMLSegmentationNode
    device: str = "auto"

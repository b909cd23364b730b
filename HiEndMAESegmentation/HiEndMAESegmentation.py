"""HiEndMAE Segmentation: label one scan, segment the rest."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import qt
import slicer
import slicer.util
from HiEndMAESegmentationLib import sample_data as samples
from HiEndMAESegmentationLib.panels.apply import ApplyPanel
from HiEndMAESegmentationLib.panels.base import Session, dimmed, load
from HiEndMAESegmentationLib.panels.models import ModelsPanel
from HiEndMAESegmentationLib.panels.refine import ImprovePanel
from HiEndMAESegmentationLib.panels.train import TeachPanel
from HiEndMAESegmentationLib.parameters import Parameters
from HiEndMAESegmentationLib.scene.nodes import segments_of
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class HiEndMAESegmentation(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("HiEndMAE Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "SubjectHierarchy", "Plots", "CropVolume"]
        parent.contributors = ["HiEndMAE contributors"]
        parent.helpText = _(
            "Label one scan in the Segment Editor, press Teach, and segment other scans with what was learned. "
            "Research use only, not for clinical decisions."
        )
        parent.acknowledgementText = _(
            "Hi-End-MAE: F. Tang et al., Hierarchical encoder-driven masked autoencoders are stronger vision learners "
            "for medical image segmentation. Medical Image Analysis, 2025. https://arxiv.org/abs/2502.08347"
        )
        slicer.app.connect("startupCompleted()", samples.register)


class HiEndMAESegmentationLogic(ScriptedLoadableModuleLogic):
    """Keeps the parameters in the scene."""

    def getParameterNode(self) -> Parameters:
        return Parameters(super().getParameterNode())


class HiEndMAESegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Four panels, one below the other; the life cycle is that of Slicer's own module template."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameters: Any = None
        self._gui_tag: Any = None

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        widget, self.ui = load("HiEndMAESegmentation")
        self.layout.addWidget(widget)
        self.layout.addStretch(1)
        dimmed(self.ui.introLabel)
        self.logic = HiEndMAESegmentationLogic()
        self.session = Session()
        self.teach = TeachPanel(self.session, self.ui.teachSection.layout())
        self.apply = ApplyPanel(self.session, self.ui.applySection.layout())
        self.improve = ImprovePanel(self.session, self.ui.improveSection.layout())
        self.models = ModelsPanel(self.session, self.ui.modelsSection.layout())
        self.panels = (self.teach, self.apply, self.improve, self.models)
        for panel in self.panels:
            panel.widget.setMRMLScene(slicer.mrmlScene)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndClose)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """No process and no observer stays behind."""
        self.session.close()
        self.setParameterNode(None)
        self.removeObservers()
        self.teach.removeObservers()
        self.apply.removeObservers()

    def enter(self) -> None:
        self.initializeParameterNode()

    def exit(self) -> None:
        self.setParameterNode(None)

    def onSceneStartClose(self, _caller: Any, _event: str) -> None:
        """The scans go away: what segments them is cancelled. What learns goes on, its files are its own."""
        self.apply.forget()
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller: Any, _event: str) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """The scene's parameters; what can be found out is not asked."""
        parameters = self.logic.getParameterNode()
        if parameters.teachSegmentation is None:
            parameters.teachSegmentation = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        self.setParameterNode(parameters)

    def setParameterNode(self, parameters: Any) -> None:
        """Tie the panels to a parameter node, or to none."""
        if self._parameters is not None:
            self._parameters.disconnectGui(self._gui_tag)
            self.removeObserver(self._parameters.parameterNode, "ModifiedEvent", self.show)
        self._parameters = parameters
        if parameters is not None:
            self._gui_tag = parameters.connectGui(slicer.util.childWidgetVariables(self.parent))
            self.addObserver(parameters.parameterNode, "ModifiedEvent", self.show)
            self.session.parameters = parameters  # a job that ends while the module is closed still needs them
            self.session.models_changed()
            self.show()

    def show(self, *_args: Any) -> None:
        for panel in self.panels:
            panel.show()


class HiEndMAESegmentationTest(ScriptedLoadableModuleTest):
    """The whole flow inside Slicer, on scans made of boxes, three steps each time: Teach, Apply, Improve, share, import."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        self.setUp()
        self.test_whole_flow()

    def test_whole_flow(self) -> None:
        parent = slicer.qMRMLWidget()
        parent.setLayout(qt.QVBoxLayout())
        parent.setMRMLScene(slicer.mrmlScene)
        widget = HiEndMAESegmentationWidget(parent)
        widget.setup()
        library = widget.session.library
        before = {model.key for model in library.models()}
        widget.teach.steps = widget.improve.steps = 3
        try:
            taught, other = self.boxes("taught"), self.boxes("other")
            widget.session.parameters.teachSegmentation = self.labels(taught)
            widget.session.parameters.start = "none"
            widget.teach.ui.teachButton.click()
            self.wait(widget, widget.teach.strip)

            widget.session.parameters.targets = [other]
            widget.apply.ui.applyButton.click()
            self.wait(widget, widget.apply.strip)
            self.assertEqual([case.state for case in widget.apply.cases], ["done"])
            result = widget.apply.results[0]
            self.assertEqual([segment.name for segment in segments_of(result)], ["box"])

            mask = (slicer.util.arrayFromVolume(other) > 0).astype("uint8")
            segment_id = segments_of(result)[0].id
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, result, segment_id, other)
            widget.session.parameters.corrected = result
            widget.improve.ui.improveButton.click()
            self.wait(widget, widget.improve.strip)

            better = library.find(widget.session.parameters.model)
            self.assertEqual(better.description.training["cases"], 2)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "shared.zip"
                widget.models.share_as(better, file)
                library.delete(better)
                widget.models.take_in_from(file)
            self.assertEqual(widget.models.chosen().description.weights_sha256, better.description.weights_sha256)
        finally:
            widget.cleanup()
            for model in library.models():
                if model.key not in before:
                    library.delete(model)

    def labels(self, volume: Any) -> Any:
        """A segmentation with the box of `volume` in it."""
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "labels")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment_id = segmentation.GetSegmentation().AddEmptySegment("", "box", [1.0, 0.0, 0.0])
        mask = (slicer.util.arrayFromVolume(volume) > 0).astype("uint8")
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, volume)
        return segmentation

    def boxes(self, name: str) -> Any:
        """A CT of water with a box of contrast medium in it, 36 voxels of 6 mm along each side."""
        voxels = numpy.full((36, 36, 36), -30, "int16")
        voxels[10:22, 12:26, 8:20] = 120
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        slicer.util.updateVolumeFromArray(node, voxels)
        node.SetSpacing(6.0, 6.0, 6.0)
        node.CreateDefaultDisplayNodes()
        return node

    def wait(self, widget: Any, strip: Any, seconds: float = 600.0) -> None:
        """Until no job runs any more; the last one must have finished."""
        end = time.monotonic() + seconds
        while widget.session.busy:
            slicer.app.processEvents()
            time.sleep(0.01)
            self.assertLess(time.monotonic(), end, "the job took too long")
        self.assertEqual(strip.job.end.state, "finished", strip.ui.messageLabel.text)

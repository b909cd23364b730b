"""The Slicer module HiEndMAE Segmentation: label one scan, segment the rest."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import qt
import slicer
import slicer.util
from HiEndMAESegmentationLib import sample_data
from HiEndMAESegmentationLib.panels.apply import ApplyPanel
from HiEndMAESegmentationLib.panels.base import Session, load_ui, make_gray
from HiEndMAESegmentationLib.panels.models import ModelsPanel
from HiEndMAESegmentationLib.panels.refine import RefinePanel
from HiEndMAESegmentationLib.panels.train import TrainPanel
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
    """Title, category and help of the module."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("HiEndMAE Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "SubjectHierarchy", "Plots", "CropVolume"]
        parent.contributors = ["HiEndMAE contributors"]
        parent.helpText = _(
            "Label one scan in the Segment Editor, press Train, and segment other scans with the trained model. "
            "Research use only, not for clinical decisions."
        )
        parent.acknowledgementText = _(
            "Hi-End-MAE: F. Tang et al., Hierarchical encoder-driven masked autoencoders are stronger vision learners "
            "for medical image segmentation. Medical Image Analysis, 2025. https://arxiv.org/abs/2502.08347"
        )
        slicer.app.connect("startupCompleted()", sample_data.register)


class HiEndMAESegmentationLogic(ScriptedLoadableModuleLogic):
    """The parameters of the module, stored in the scene."""

    def getParameterNode(self) -> Parameters:
        """Return the parameters of the current scene."""
        return Parameters(super().getParameterNode())


class HiEndMAESegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The four panels, one below the other; the life cycle is that of Slicer's module template."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameters: Any = None
        self._gui_tag: Any = None

    def setup(self) -> None:
        """Make the panels, and observe the scene."""
        ScriptedLoadableModuleWidget.setup(self)
        widget, self.ui = load_ui("HiEndMAESegmentation")
        self.layout.addWidget(widget)
        self.layout.addStretch(1)
        make_gray(self.ui.introLabel)
        self.logic = HiEndMAESegmentationLogic()
        self.session = Session()
        self.train = TrainPanel(self.session, self.ui.trainSection.layout())
        self.apply = ApplyPanel(self.session, self.ui.applySection.layout())
        self.refine = RefinePanel(self.session, self.ui.refineSection.layout())
        self.models = ModelsPanel(self.session, self.ui.modelsSection.layout())
        self.panels = (self.train, self.apply, self.refine, self.models)
        for panel in self.panels:
            panel.widget.setMRMLScene(slicer.mrmlScene)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndClose)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """End the running job, and remove all observers."""
        self.session.close()
        self.setParameterNode(None)
        self.removeObservers()
        self.train.removeObservers()
        self.apply.removeObservers()

    def enter(self) -> None:
        """Connect the panels to the parameters: the user opened the module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Disconnect the panels from the parameters: the user left the module."""
        self.setParameterNode(None)

    def onSceneStartClose(self, _caller: Any, _event: str) -> None:
        """Cancel segmentation, because its scans are removed; training has its own files and goes on."""
        self.apply.forget()
        self.setParameterNode(None)

    def onSceneEndClose(self, _caller: Any, _event: str) -> None:
        """Connect the panels to the parameters of the new scene."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Connect the panels to the scene's parameters, and choose the first segmentation if none is chosen."""
        parameters = self.logic.getParameterNode()
        if parameters.teachSegmentation is None:
            parameters.teachSegmentation = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
        self.setParameterNode(parameters)

    def setParameterNode(self, parameters: Any) -> None:
        """Connect the panels to a parameter node, or disconnect them if it is None."""
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
        """Update all panels from the parameters."""
        for panel in self.panels:
            panel.show()


class HiEndMAESegmentationTest(ScriptedLoadableModuleTest):
    """The whole flow inside Slicer, on scans made of boxes, with three training steps: train, apply, improve, share, import."""

    def setUp(self) -> None:
        """Clear the scene."""
        slicer.mrmlScene.Clear(0)

    def runTest(self) -> None:
        """Run the test of the whole flow."""
        self.setUp()
        self.test_whole_flow()

    def test_whole_flow(self) -> None:
        """Train on one scan, segment another, correct the result, continue training, share and import the model."""
        parent = slicer.qMRMLWidget()
        parent.setLayout(qt.QVBoxLayout())
        parent.setMRMLScene(slicer.mrmlScene)
        widget = HiEndMAESegmentationWidget(parent)
        widget.setup()
        library = widget.session.library
        before = {model.key for model in library.models()}
        widget.train.steps = widget.refine.steps = 3
        try:
            training_scan, other = self.boxes("labelled"), self.boxes("other")
            widget.session.parameters.teachSegmentation = self.labels(training_scan)
            widget.session.parameters.start = "none"
            widget.train.ui.trainButton.click()
            self.wait(widget, widget.train.strip)

            widget.session.parameters.targets = [other]
            widget.apply.ui.applyButton.click()
            self.wait(widget, widget.apply.strip)
            self.assertEqual([case.state for case in widget.apply.queue.cases], ["done"])
            result = widget.apply.queue.results[0]
            self.assertEqual([segment.name for segment in segments_of(result)], ["box"])

            mask = (slicer.util.arrayFromVolume(other) > 0).astype("uint8")
            segment_id = segments_of(result)[0].id
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, result, segment_id, other)
            widget.session.parameters.corrected = result
            widget.refine.ui.refineButton.click()
            self.wait(widget, widget.refine.strip)

            refined = library.find(widget.session.parameters.model)
            self.assertEqual(refined.description.training["cases"], 2)
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "shared.zip"
                widget.models.share_as(refined, file)
                library.delete(refined)
                widget.models.import_from(file)
            self.assertEqual(widget.models.chosen().description.weights_sha256, refined.description.weights_sha256)
        finally:
            widget.cleanup()
            for model in library.models():
                if model.key not in before:
                    library.delete(model)

    def labels(self, volume: Any) -> Any:
        """Return a segmentation with the box of `volume`."""
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "labels")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment_id = segmentation.GetSegmentation().AddEmptySegment("", "box", [1.0, 0.0, 0.0])
        mask = (slicer.util.arrayFromVolume(volume) > 0).astype("uint8")
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, volume)
        return segmentation

    def boxes(self, name: str) -> Any:
        """Return a CT of water with a box of contrast medium, 36 voxels of 6 mm along each side."""
        voxels = numpy.full((36, 36, 36), -30, "int16")
        voxels[10:22, 12:26, 8:20] = 120
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        slicer.util.updateVolumeFromArray(node, voxels)
        node.SetSpacing(6.0, 6.0, 6.0)
        node.CreateDefaultDisplayNodes()
        return node

    def wait(self, widget: Any, strip: Any, seconds: float = 600.0) -> None:
        """Wait until no job is running, and check that the last one has finished."""
        end = time.monotonic() + seconds
        while widget.session.busy:
            slicer.app.processEvents()
            time.sleep(0.01)
            self.assertLess(time.monotonic(), end, "the job took too long")
        self.assertEqual(strip.job.end.state, "finished", strip.ui.messageLabel.text)

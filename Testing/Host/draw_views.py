"""Draw slice and 3D views of a segmentation with Slicer's own displayable managers, without a screen:

python Testing/Host/draw_views.py OUT.png SCAN LABELS NAMES.json [UNCERTAINTY_MAP] [--at X Y Z] [--window LOW HIGH]

It needs a separate environment, `pip install trame-slicer slicer-layer-dm pillow`, with another slicer-core than the tests.
NAMES.json is written as in a model, {"labels": [{"value", "name", "colour"}]}. The 3D view shows only the segments, so that
no face is visible.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from PIL import Image
from trame_slicer.core import SlicerApp
from trame_slicer.views import DirectViewFactory, ViewLayoutDefinition

SIZE = (440, 400)


def parse_arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser()
    for name in ("out", "scan", "labels", "names"):
        parser.add_argument(name, type=Path)
    parser.add_argument("map", type=Path, nargs="?", help="uncertainty map in percent")
    parser.add_argument("--at", type=float, nargs=3, help="position in RAS mm (default: the center of the segments)")
    parser.add_argument("--window", type=float, nargs=2, default=(-160, 240))
    return parser.parse_args()


def photograph(view: Any, file: Path) -> Image.Image:
    """Return the picture that the view shows."""
    window = view.render_window()
    window.SetSize(*SIZE)
    for _ in range(2):
        window.Render()
    picture = vtk.vtkWindowToImageFilter()
    picture.SetInput(window)
    picture.ReadFrontBufferOff()
    picture.Update()
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(file))
    writer.SetInputConnection(picture.GetOutputPort())
    writer.Write()
    return Image.open(file).convert("RGB")


def segmentation_of(app: Any, volume: Any, options: argparse.Namespace) -> Any:
    """Return the segmentation node with names, colors and surfaces."""
    label_volume = app.io_manager.load_volumes(str(options.labels))[0]
    array = slicer.util.arrayFromVolume(label_volume).astype(np.int16)
    app.scene.RemoveNode(label_volume)
    label_map = app.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    app.volumes_logic.CreateLabelVolumeFromVolume(app.scene, label_map, volume)
    slicer.util.updateVolumeFromArray(label_map, array)
    node = app.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    app.segmentations_logic.ImportLabelmapToSegmentationNode(label_map, node)
    app.scene.RemoveNode(label_map)
    labels = {label["value"]: label for label in json.loads(options.names.read_text(encoding="utf-8"))["labels"]}
    values = [value for value in np.unique(array) if value]
    for index, value in enumerate(values):
        segment = node.GetSegmentation().GetNthSegment(index)
        segment.SetName(labels[value]["name"])
        segment.SetColor(*(part / 255 for part in labels[value]["colour"]))
    node.CreateClosedSurfaceRepresentation()
    node.GetDisplayNode().SetVisibility2DFill(False)  # off-screen, a fill hides the scan
    node.GetDisplayNode().SetSliceIntersectionThickness(2)
    return node


def main() -> None:
    """Draw axial, coronal and 3D view side by side."""
    options = parse_arguments()
    app = SlicerApp()
    app.view_manager.register_factory(DirectViewFactory(do_render_offscreen=True))
    kinds = (ViewLayoutDefinition.axial_view(), ViewLayoutDefinition.coronal_view(), ViewLayoutDefinition.threed_view())
    views = [app.view_manager.create_view(kind) for kind in kinds]
    axial, coronal, solid = [getattr(view, "slicer_view", view) for view in views]
    volume = app.io_manager.load_volumes(str(options.scan))[0]
    node = segmentation_of(app, volume, options)
    app.display_manager.show_volume_in_slice_background(volume)
    display = volume.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(*options.window)
    if options.map is not None:
        overlay = app.io_manager.load_volumes(str(options.map))[0]
        shown = overlay.GetDisplayNode()
        shown.SetAndObserveColorNodeID("vtkMRMLColorTableNodeIron")
        shown.SetAutoWindowLevel(False)
        shown.SetWindowLevelMinMax(0, 100)
        shown.SetThreshold(20, 100)
        shown.SetApplyThreshold(True)
        app.display_manager.show_volume_in_slice_foreground(overlay)
        for index in range(app.scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            app.scene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode").SetForegroundOpacity(0.6)
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    position = options.at or [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]
    for view, axis in ((axial, 2), (coronal, 1)):
        view.render_window().SetSize(*SIZE)
        view.fit_view_to_content()
        view.set_slice_value(position[axis])
    solid.set_box_visible(False)
    solid.reset_view()
    solid.zoom(0.2)
    with tempfile.TemporaryDirectory() as folder:
        pictures = [photograph(view, Path(folder) / "view.png") for view in (axial, coronal, solid)]
    whole = Image.new("RGB", (len(pictures) * (SIZE[0] + 4) - 4, SIZE[1]), "white")
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index * (SIZE[0] + 4), 0))
    whole.save(options.out, optimize=True)  # a palette would give both kidneys one color


if __name__ == "__main__":
    main()

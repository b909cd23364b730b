"""Give each error code a sentence for a clinician, and, where one helps, a button."""

from __future__ import annotations

from dataclasses import dataclass

from slicer.i18n import tr as _


@dataclass(frozen=True)
class ErrorActions:
    """A sentence, and the actions that may help, best first: "install", "cpu", "2mm", "crop" or "retry"."""

    text: str
    actions: tuple[str, ...] = ()


def button_text(action: str) -> str:
    """Return the text of the button for an action."""
    texts = {
        "install": _("Install"),
        "cpu": _("Try on the CPU"),
        "2mm": _("Use 2 mm"),
        "crop": _("Crop to the ROI"),
        "retry": _("Try again"),
    }
    return texts.get(action, "")


def actions_for(code: str, message: str, advice: str) -> ErrorActions:
    """Return sentence and actions for an error of the engine, whose advice may name command-line options.

    Args:
        code: The error's stable code.
        message: The engine's message.
        advice: The engine's advice; it is left out if it names an option.
    """
    # As an error it ends a quick preview; as a warning its advice fits, and names no option.
    registration_advice = _("Press 'Segment': the network needs no registration.") if "--" in advice else advice
    table = {
        "dependency_missing": ErrorActions(
            _("Some Python packages that this needs are not installed yet."), ("install",)
        ),
        "out_of_memory": ErrorActions(
            _("There is not enough memory for this. Close other programs, or try the button."), ("cpu", "2mm", "crop")
        ),
        "scan_too_large": ErrorActions(
            f"{message} " + _("Close other programs, work on a coarser grid, or crop the scan."), ("2mm", "crop")
        ),
        "too_large": ErrorActions(f"{message} " + _("Crop the scan to the region of interest."), ("crop",)),
        "killed": ErrorActions(f"{message} {advice}", ("retry",)),
        "device_absent": ErrorActions(_("The GPU does not respond."), ("cpu",)),
        "files_failed": ErrorActions(message, ("retry",)),
        "disk_full": ErrorActions(_("The disk is full. Free some space, and try again."), ("retry",)),
        "labels_too_small": ErrorActions(
            _("The structures are too small for this scan's size. Crop the scan to their region."), ("crop",)
        ),
        "torch_without_cuda": ErrorActions(
            f"{message} " + _("Open the module 'PyTorch Util', uninstall PyTorch, and install it again for the card.")
        ),
        "gpu_unsupported": ErrorActions(
            f"{message} " + _("Install the newest PyTorch in the module 'PyTorch Util', or compute on the CPU.")
        ),
        "gpu_hidden": ErrorActions(
            f"{message} " + _("Restart the computer; if that does not help, update the driver.")
        ),
        "torch_slow": ErrorActions(f"{message} " + _("Install another version in the module 'PyTorch Util'.")),
        "memory_small": ErrorActions(
            f"{message} " + _("Large scans may not fit; crop them to the region of interest.")
        ),
        "registration_failed": ErrorActions(f"{message} " + registration_advice),
        "extra_missing": ErrorActions(""),  # figures, stores and DICOM files of the command line: not needed here
        "internal_fault": ErrorActions(f"{message} " + _("Please report it with the log."), ("retry",)),
    }
    if code in table:
        return table[code]
    plain_advice = "" if "--" in advice else advice
    return ErrorActions(f"{message} {plain_advice}".strip())

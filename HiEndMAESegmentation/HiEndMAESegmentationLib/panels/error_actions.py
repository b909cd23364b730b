"""What to tell a clinician for each error code: one sentence, and where it helps one button."""

from __future__ import annotations

from dataclasses import dataclass

from slicer.i18n import tr as _


@dataclass(frozen=True)
class Advice:
    """A sentence, and what may help, the best first: "install", "cpu", "2mm", "crop" or "retry"."""

    text: str
    actions: tuple[str, ...] = ()


def button_of(action: str) -> str:
    """What the button of an action says."""
    known = {
        "install": _("Install"),
        "cpu": _("Try on the processor"),
        "2mm": _("Use 2 mm"),
        "crop": _("Crop to the ROI"),
        "retry": _("Try again"),
    }
    return known.get(action, "")


def advise(code: str, message: str, advice: str) -> Advice:
    """The engine speaks of command-line options; here is what its codes mean in the module."""
    known = {
        "dependency_missing": Advice(_("Some Python packages that this needs are not installed yet."), ("install",)),
        "out_of_memory": Advice(
            _("There is not enough memory for this. Close other programs, or try the button."), ("cpu", "2mm", "crop")
        ),
        "scan_too_large": Advice(
            f"{message} " + _("Close other programs, work on a coarser grid, or crop the scan."), ("2mm", "crop")
        ),
        "too_large": Advice(f"{message} " + _("Crop the scan to the region of interest."), ("crop",)),
        "killed": Advice(f"{message} {advice}", ("retry",)),
        "device_absent": Advice(_("The graphics card does not answer."), ("cpu",)),
        "files_failed": Advice(message, ("retry",)),
        "disk_full": Advice(_("The disk is full. Free some space, and try again."), ("retry",)),
        "labels_too_small": Advice(
            _("The structures are too small for this scan's size. Crop the scan to their region."), ("crop",)
        ),
        "torch_without_cuda": Advice(
            f"{message} " + _("Open the module 'PyTorch Util', uninstall PyTorch, and install it again for the card.")
        ),
        "gpu_unsupported": Advice(
            f"{message} " + _("Install the newest PyTorch in the module 'PyTorch Util', or compute on the processor.")
        ),
        "gpu_hidden": Advice(f"{message} " + _("Restart the computer; if that does not help, update the driver.")),
        "torch_slow": Advice(f"{message} " + _("Install another version in the module 'PyTorch Util'.")),
        "memory_small": Advice(f"{message} " + _("Large scans may not fit; crop them to the region of interest.")),
        "extra_missing": Advice(""),  # pictures, stores and DICOM files of the command line: not needed here
        "internal_fault": Advice(f"{message} " + _("Please report it with the log."), ("retry",)),
    }
    if code in known:
        return known[code]
    plain = "" if "--" in advice else advice
    return Advice(f"{message} {plain}".strip())

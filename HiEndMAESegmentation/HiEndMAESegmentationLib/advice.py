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
        "disk_full": Advice(_("The disk is full. Free some space, and try again."), ("retry",)),
        "labels_too_small": Advice(
            _("The structures are too small for this scan's size. Crop the scan to their region."), ("crop",)
        ),
        "internal_fault": Advice(f"{message} " + _("Please report it with the log."), ("retry",)),
    }
    if code in known:
        return known[code]
    plain = "" if "--" in advice else advice
    return Advice(f"{message} {plain}".strip())

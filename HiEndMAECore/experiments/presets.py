"""Plans that come with the engine, as plain JSON of `plan.py`. Standard library alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .plan import Plan, parse_plan

_CLEAN = ["segment", "--clean"]  # the largest component of each structure, for all arms alike


def _chain(name: str, *options: str) -> dict[str, Any]:
    """Return an arm that fine-tunes with some options."""
    return {"name": name, "learn": [["finetune", *options]], "apply": _CLEAN}


def _script(name: str) -> dict[str, Any]:
    """Return an arm that registers the labelled scan and propagates its labels."""
    return {"name": name, "script": [f"propagate_{name}.py", "--clean"]}


# What abdomen A, the labels of a model, shares with other data sets
_ABDOMEN_LABELS = {
    "spleen": 1, "kidney_right": 2, "kidney_left": 3, "gallbladder": 4, "liver": 5, "stomach": 6, "pancreas": 7,
    "aorta": 52, "inferior_vena_cava": 63, "spinal_cord": 79, "autochthon_left": 86, "autochthon_right": 87,
}  # fmt: skip
_NINE_ORGANS = {
    "spleen": "spleen", "kidney_right": "right_kidney", "kidney_left": "left_kidney", "gallbladder": "gallbladder",
    "liver": "liver", "stomach": "stomach", "pancreas": "pancreas", "aorta": "aorta",
    "inferior_vena_cava": "inferior_vena_cava",
}  # fmt: skip
_SLAB_STRUCTURES = (
    "liver", "spleen", "stomach", "pancreas", "aorta", "inferior_vena_cava", "spinal_cord", "autochthon_left",
    "autochthon_right",
)  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "one-label": {
        "datasets": [
            {"name": "OpenKBP", "folder": "Dataset101_OpenKBP"},
            {"name": "BTCV", "folder": "Dataset102_BTCV"},
            {"name": "CHAOS MRI", "folder": "Dataset103_CHAOSMR"},
            {"name": "hippocampus", "folder": "Dataset104_Hippocampus"},
            {"name": "ACDC", "folder": "Dataset105_ACDC"},
            {
                "name": "abdomen A",
                "cases": {
                    "abdomen_A": {
                        "image": "abdomen/ct_abdomen_A/ct.nii.gz",
                        "label": "abdomen/ct_abdomen_A/seg_total.nii.gz",
                    }
                },
                "labels": _ABDOMEN_LABELS,
                "modality": "ct",
                "splits": {"train": ["abdomen_A"]},
                "targets": [
                    {"dataset": "BTCV", "structures": _NINE_ORGANS},
                    {"dataset": "slab", "structures": {name: name for name in _SLAB_STRUCTURES}},
                ],
            },
            {
                "name": "slab",
                "cases": {
                    "slab": {
                        "image": "robustness/dicom_jpeg2000/dicom",
                        "label": "robustness/dicom_jpeg2000/seg_total.nii.gz",
                    }
                },
                "labels": {name: _ABDOMEN_LABELS[name] for name in _SLAB_STRUCTURES},
                "modality": "ct",
                "splits": {"test": ["slab"]},
            },
        ],
        "arms": [
            _chain("shipped"),
            _chain("scratch", "--init", "none"),
            _chain("unetr", "--network", "unetr", "--init", "none"),
            _chain("dynunet", "--network", "dynunet", "--init", "none"),
            _chain("segresnet", "--network", "segresnet", "--init", "none"),
            _script("registration"),
            _script("elastix"),
            _script("convexadam"),
        ],
    }
}


def read_preset(name: str, data: Path) -> Plan:
    """Return a preset for the data in a folder; raise `InputError` for what is missing there."""
    return parse_plan(PRESETS[name], data, source=f"preset {name}")

"""Digital patients as a data set on disk in nnU-Net's layout, for the demonstration and the tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from HiEndMAECore.io.atomic import write_text
from HiEndMAECore.io.writers import write_label_map, write_scalar_map

from .phantom import PHANTOM_STRUCTURES, make_patient


def write_patients(folder: Path, *, labelled: Sequence[int], unlabelled: Sequence[int] = ()) -> Iterator[Path]:
    """Write digital patients as a data set.

    Args:
        folder: Folder of the data set; patients that exist in it are not changed.
        labelled: Seeds of patients with a label map.
        unlabelled: Seeds of patients without one.

    Yields:
        The path of each scan when it is written (a second or two each).
    """
    names = {structure.name: structure.value for structure in PHANTOM_STRUCTURES}
    description = {
        "name": "Digital patients",
        "description": "Drawn by HiEndMAECore.data.phantom; nobody's scan.",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **names},
        "numTraining": len(labelled),
        "file_ending": ".nii.gz",
    }
    write_text(folder / "dataset.json", json.dumps(description, indent=1) + "\n")
    for name in ("imagesTr", "labelsTr", "imagesUnlabelled"):
        (folder / name).mkdir(exist_ok=True)
    for seed in (*labelled, *unlabelled):
        images = "imagesTr" if seed in labelled else "imagesUnlabelled"
        path = folder / images / f"patient_{seed:03d}_0000.nii.gz"
        label = folder / "labelsTr" / f"patient_{seed:03d}.nii.gz"
        if not path.exists() or (seed in labelled and not label.exists()):
            scan, labels = make_patient(seed)
            write_scalar_map(path, scan.array[0], scan.geometry)
            if seed in labelled:
                write_label_map(label, labels.array[0], labels.geometry, structures=PHANTOM_STRUCTURES)
        yield path

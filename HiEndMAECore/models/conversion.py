"""Convert the authors' checkpoint to a model folder, and back.

    python -m HiEndMAECore.models.conversion hi_end_mae_10k.pth authors-model
    python -m HiEndMAECore.models.conversion run/model for-their-code.pth
    python -m HiEndMAECore.models.conversion run/model small-model --half

Both hold the same tensors, bit by bit. With --half, a copy of a model folder is made in 16 bits; it leaves out the atlas of the
labelled scan, unless --keep-atlas is given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from HiEndMAECore.errors import HiEndMAEError, InputError
from HiEndMAECore.preprocessing.defaults import CT_WINDOW_HU

if TYPE_CHECKING:
    from torch import Tensor


SUFFIXES = (".pth", ".pt")  # of the authors' checkpoints
PAPER_PREPROCESSING = {  # of the scans that the authors' weights were trained on, section 4.1 of the paper
    "spacing": [1.5, 1.5, 1.5],
    "normalisation": {"kind": "window", "low": CT_WINDOW_HU[0], "high": CT_WINDOW_HU[1]},
    "orientation": "RAS",
}


def convert(source: Path, output: Path, *, half: bool = False, keep_atlas: bool = False) -> None:
    """Convert between the authors' checkpoint and a model folder.

    The direction follows from the suffixes. A file that is not exactly a Hi-End-MAE of a known variant is refused.

    Args:
        source: The authors' file (.pth or .pt), or a model folder or zip.
        output: The authors' file, or a model folder or zip, which must not exist.
        half: True makes a copy of a model folder in 16 bits instead.
        keep_atlas: Whether that copy keeps the atlas of the labelled scan.

    Raises:
        InputError: The source cannot be converted; the message lists the weights that do not fit.
    """
    if not source.exists():
        raise InputError("file_missing", f"There is no file or folder {source}.", "Check the path.")
    if output.exists():
        raise InputError("output_exists", f"{output} is there already.", "Choose another name, or delete it.")
    to_authors, from_authors = (path.suffix.lower() in SUFFIXES for path in (output, source))
    if half and not (to_authors or from_authors):
        _copy_in_half_precision(source, output, keep_atlas=keep_atlas)
        return
    if half or to_authors == from_authors:
        raise InputError(
            "conversion_unclear",
            f"From {source} to {output} there is nothing to do.",
            "Give the authors' .pth file and a folder to make, a model folder and a .pth file, or two folders and --half.",
        )
    (_authors_to_folder if from_authors else _folder_to_authors)(source, output)


def _authors_to_folder(source: Path, output: Path) -> None:
    """Convert the authors' checkpoint to a model folder."""
    from HiEndMAECore.networks import HiEndMAE
    from HiEndMAECore.networks.variants import pretraining_arguments

    from .authors import infer_variant, load_pretraining_state, read_authors_checkpoint
    from .description import ModelDescription
    from .folder import write_model

    state = read_authors_checkpoint(source)
    variant = infer_variant(state, source=str(source))
    arguments = pretraining_arguments(variant, image_size=_crop_size(state, variant.patch_size) or variant.image_size)
    model = HiEndMAE(**arguments)
    load_pretraining_state(model, state)
    description = ModelDescription(
        kind="pretraining",
        name=source.stem,
        architecture={"network": "HiEndMAE", "variant": variant.name, "arguments": arguments},
        channels=["CT"],
        preparation=PAPER_PREPROCESSING,
        training={"init": source.name},
    )
    write_model(output, description, model.state_dict())


def _folder_to_authors(source: Path, output: Path) -> None:
    """Convert the model folder of a pretraining run to the authors' checkpoint."""
    from HiEndMAECore.networks import HiEndMAE

    from .authors import infer_variant, load_pretraining_state, write_authors_checkpoint
    from .folder import read_model
    from .schema import unusable_model

    description, weights = read_model(source)
    if description.kind != "pretraining":
        raise InputError(
            "not_pretraining",
            f"{source} is a segmentation model; the authors' checkpoint holds a pretraining model.",
            "Give the model of a pretraining run.",
        )
    if description.architecture.get("network") != "HiEndMAE":
        raise InputError(
            "not_pretraining",
            f"{source} holds a network pretrained by inpainting; the authors' checkpoint holds an encoder with its decoder.",
            "Give the model of the run that pretrained the encoder.",
        )
    arguments = description.architecture["arguments"]
    try:
        model = HiEndMAE(**arguments)
    except (TypeError, ValueError) as error:
        raise unusable_model(source, f"its network cannot be built ({error})") from error
    load_pretraining_state(model, weights)
    known = infer_variant(model.state_dict(), source=str(source))
    if (
        known.encoder_heads != arguments["encoder_heads"]
    ):  # no shape depends on it: their code would compute another result
        raise InputError(
            "not_theirs",
            f"{source} has {arguments['encoder_heads']} attention heads; the authors give this size {known.encoder_heads}.",
            "Keep it as a model folder.",
        )
    write_authors_checkpoint(output, model)


def _copy_in_half_precision(source: Path, output: Path, *, keep_atlas: bool) -> None:
    """Copy a model with its weights in 16 bits, named after the output."""
    from .folder import read_atlas_tensors, read_model, write_model

    description, weights = read_model(source)
    atlases = read_atlas_tensors(source)[1] if keep_atlas else ()
    halved = {name: value.half() for name, value in weights.items()}
    write_model(output, replace(description, name=output.name), halved, atlases)


def _crop_size(state: dict[str, Tensor], patch_size: int) -> tuple[int, int, int] | None:
    """Return the crop in voxels that a stored position embedding is for, taken as a cube; None without an embedding."""
    embedding = state.get("encoder_pos_embed")
    if embedding is None:
        return None
    edge = round(embedding.shape[-2] ** (1 / 3)) * patch_size
    return edge, edge, edge


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m HiEndMAECore.models.conversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="the authors' .pth file, or a model folder")
    parser.add_argument("output", type=Path, help="a model folder, or a .pth file, to make")
    parser.add_argument("--half", action="store_true", help="a copy of a model folder in 16 bits")
    parser.add_argument("--keep-atlas", action="store_true", help="with --half: keep the atlas of the labelled scan")
    options = parser.parse_args(argv)
    try:
        convert(options.source, options.output, half=options.half, keep_atlas=options.keep_atlas)
    except HiEndMAEError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"Written: {options.output}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

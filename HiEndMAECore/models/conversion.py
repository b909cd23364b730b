"""From the authors' checkpoint to a model folder, and back.

    python -m HiEndMAECore.models.conversion hi_end_mae_10k.pth authors-model
    python -m HiEndMAECore.models.conversion run/model for-their-code.pth
    python -m HiEndMAECore.models.conversion run/model small-model --half

Nothing is lost on the way: both hold the same tensors, bit by bit; but for --half, a copy in 16 bits to give away.
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


SUFFIXES = (".pth", ".pt")
_PAPER = {  # section 4.1: what the authors' weights were trained on
    "spacing": [1.5, 1.5, 1.5],
    "normalisation": {"kind": "window", "low": CT_WINDOW_HU[0], "high": CT_WINDOW_HU[1]},
    "orientation": "RAS",
}


def convert(source: Path, output: Path, *, half: bool = False) -> None:
    """Write `output`: the authors' layout when it ends in .pth or .pt, else a model folder. Raises `InputError`.

    half: from model folder to model folder, in 16 bits.

    Strict: a file that is not exactly a Hi-End-MAE of a known variant is refused with the list of what does not fit.
    """
    if not source.exists():
        raise InputError("file_missing", f"There is no file or folder {source}.", "Check the path.")
    if output.exists():
        raise InputError("output_exists", f"{output} is there already.", "Choose another name, or delete it.")
    to_authors, from_authors = (path.suffix.lower() in SUFFIXES for path in (output, source))
    if half and not (to_authors or from_authors):
        _to_half(source, output)
        return
    if half or to_authors == from_authors:
        raise InputError(
            "conversion_unclear",
            f"From {source} to {output} there is nothing to do.",
            "Give the authors' .pth file and a folder to make, a model folder and a .pth file, or two folders and --half.",
        )
    (_to_folder if from_authors else _to_authors)(source, output)


def _to_folder(source: Path, output: Path) -> None:
    from HiEndMAECore.networks import HiEndMAE
    from HiEndMAECore.networks.variants import pretraining_arguments

    from .authors import infer_variant, load_pretraining_state, read_authors_checkpoint
    from .description import ModelDescription
    from .folder import write_model

    state = read_authors_checkpoint(source)
    variant = infer_variant(state, source=str(source))
    arguments = pretraining_arguments(variant, image_size=_crop(state, variant.patch_size) or variant.image_size)
    model = HiEndMAE(**arguments)
    load_pretraining_state(model, state)
    description = ModelDescription(
        kind="pretraining",
        name=source.stem,
        architecture={"network": "HiEndMAE", "variant": variant.name, "arguments": arguments},
        channels=["CT"],
        preparation=_PAPER,
        training={"init": source.name},
    )
    write_model(output, description, model.state_dict())


def _to_authors(source: Path, output: Path) -> None:
    from HiEndMAECore.networks import HiEndMAE

    from .authors import infer_variant, load_pretraining_state, write_authors_checkpoint
    from .folder import read_description, read_weights

    description = read_description(source)
    if description.kind != "pretraining":
        raise InputError(
            "not_pretraining",
            f"{source} is a segmentation model; the authors' checkpoint holds a pretraining model.",
            "Give the model of a pretraining run.",
        )
    if description.architecture.get("network") != "HiEndMAE":
        raise InputError(
            "not_pretraining",
            f"{source} holds the convolutions of a second stage; the authors' checkpoint holds an encoder with its decoder.",
            "Give the model of the run that pretrained the encoder.",
        )
    arguments = description.architecture["arguments"]
    model = HiEndMAE(**arguments)
    load_pretraining_state(model, read_weights(source, description))
    known = infer_variant(model.state_dict(), source=str(source))
    if known.encoder_heads != arguments["encoder_heads"]:  # which no shape tells: it would compute something else there
        raise InputError(
            "not_theirs",
            f"{source} has {arguments['encoder_heads']} attention heads; the authors give this size {known.encoder_heads}.",
            "Keep it as a model folder.",
        )
    write_authors_checkpoint(output, model)


def _to_half(source: Path, output: Path) -> None:
    from .folder import read_description, read_weights, write_model

    description = read_description(source)
    weights = {name: value.half() for name, value in read_weights(source, description).items()}
    write_model(output, replace(description, name=output.name), weights)


def _crop(state: dict[str, Tensor], patch: int) -> tuple[int, int, int] | None:
    """The crop that a stored position table is for, taken as a cube; None without a table."""
    table = state.get("encoder_pos_embed")
    if table is None:
        return None
    edge = round(table.shape[-2] ** (1 / 3)) * patch
    return edge, edge, edge


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m HiEndMAECore.models.conversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="the authors' .pth file, or a model folder")
    parser.add_argument("output", type=Path, help="a model folder, or a .pth file, to make")
    parser.add_argument("--half", action="store_true", help="a copy of a model folder in 16 bits")
    options = parser.parse_args(argv)
    try:
        convert(options.source, options.output, half=options.half)
    except HiEndMAEError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"Written: {options.output}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

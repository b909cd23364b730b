"""The authors' weights: how their files are read and what their keys are called here.

Their names are ours (see `networks.encoder`), but for three things: a leading `module.` from their distributed wrapper,
the two stored position tables (computed here, and compared), and everything else a training snapshot holds beside
`state_dict`. Facts: specification, section 1, "State dict".
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.networks.transfer import load_strict

if TYPE_CHECKING:
    from torch import Tensor

    from HiEndMAECore.networks import HiEndMAE, Variant


_TABLES = {"encoder_pos_embed": "encoder.positions", "decoder_pos_embed": "decoder_position_embedding"}


def read_authors_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.pt`/`.pth` file, with the authors' key names without `module.`; raises `InputError`."""
    import torch

    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise InputError(
            "torch_unsafe",
            f"{path} is a pickled file, and torch {torch.__version__} cannot read such files safely.",
            "Install torch 2.6 or newer, or convert the file to a model folder on a computer that has it.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            "weights_unreadable",
            f"{path} cannot be read as PyTorch weights ({str(error).splitlines()[0] if str(error) else type(error).__name__}).",
            "Download the file again, and check that it is the authors' checkpoint.",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(
            "weights_unreadable", f"{path} holds no state dict.", "Give the authors' checkpoint with its 'state_dict'."
        )
    return strip_module_prefix(state)


def write_authors_checkpoint(path: Path, model: HiEndMAE) -> None:
    """Write `model` as the authors' code reads it: `state_dict` with `module.` before each key, and position tables."""
    import torch

    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    state |= {key: model.get_buffer(ours).detach().cpu()[None].clone() for key, ours in _TABLES.items()}
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"epoch": 0, "state_dict": {f"module.{key}": value for key, value in state.items()}}, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def strip_module_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keys without the distributed wrapper's leading `module.`."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def infer_variant(state: Mapping[str, Tensor], *, source: str = "the file") -> Variant:
    """Which variant these pretraining weights are, by their shapes; raises `InputError`."""
    from HiEndMAECore.networks.variants import get_variant, list_vit_variants

    weight, token = state.get("encoder.patch_embed.proj.weight"), state.get("mask_token")
    if weight is not None and token is not None:
        sizes = (weight.shape[2], weight.shape[0], token.shape[-1])
        for name in list_vit_variants():
            variant = get_variant(name)
            if sizes == (variant.patch_size, variant.encoder_dim, variant.decoder_dim):
                return variant
    raise InputError(
        "weights_unknown",
        f"{source} holds no Hi-End-MAE weights of a known variant.",
        f"Known variants: {', '.join(list_vit_variants())}.",
    )


def load_pretraining_state(model: HiEndMAE, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights with the authors' key names, with or without `module.`, into a pretraining model.

    Strict: unknown, missing or mis-shaped keys raise `InputError` that lists them. Stored position tables must be the
    ones computed here.
    """
    state = strip_module_prefix(state_dict)
    for key, ours in _TABLES.items():
        table = state.pop(key, None)
        if table is None:
            continue
        here = model.get_buffer(ours)
        if table.shape[-2:] != here.shape or (table.reshape(here.shape).to(here) - here).abs().max() > 1e-4:
            raise InputError(
                "weights_positions",
                f"The stored position table '{key}' {tuple(table.shape)} is not the sin-cos table of this network.",
                "The weights were trained with another crop, or with learned positions, which are not supported.",
            )
    load_strict(model, state, what="pretraining weights")

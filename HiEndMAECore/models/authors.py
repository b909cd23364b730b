"""The checkpoints of the authors' code: read and write them, and load them into a pretraining model.

The names of their weights are those of `networks.hi_end_mae`, with three differences: a leading `module.` of the distributed
wrapper, two stored position embeddings (computed here, and compared), and everything else that a training checkpoint holds
beside `state_dict`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HiEndMAECore.errors import InputError
from HiEndMAECore.io.atomic import atomic_path
from HiEndMAECore.networks.transfer import load_strict

if TYPE_CHECKING:
    from torch import Tensor

    from HiEndMAECore.networks import HiEndMAE, Variant


# Name in the authors' files -> name of the buffer that holds the same position embedding here.
_POSITION_EMBEDDINGS = {
    "encoder_pos_embed": "encoder.position_embedding",
    "decoder_pos_embed": "decoder_position_embedding",
}
_POSITION_TOLERANCE = 1e-4
_SAFE_TORCH = (2, 6)  # earlier versions run code in files that they read, also with weights_only


def read_authors_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a `.pt` or `.pth` file, without `module.` in its names.

    Raises:
        InputError: `torch_unsafe` if this version of torch cannot read such files safely; `weights_unreadable` if the file
            holds no weights.
    """
    import torch

    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < _SAFE_TORCH:
        raise InputError(
            "torch_unsafe",
            f"{path} is a pickled file, and torch {torch.__version__} cannot read such files safely.",
            "Install torch 2.6 or newer, or convert the file to a model folder on a computer that has it.",
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            "weights_unreadable",
            f"{path} cannot be read as PyTorch weights ({reason}).",
            "Download the file again, and check that it is the authors' checkpoint.",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(
            "weights_unreadable", f"{path} holds no state dict.", "Give the authors' checkpoint with its 'state_dict'."
        )
    return strip_module_prefix(state)


def write_authors_checkpoint(path: Path, model: HiEndMAE) -> None:
    """Write a pretraining model so that the authors' code reads it.

    The file holds `state_dict` with `module.` before each name, and the two position embeddings.

    Args:
        path: File to write, or to replace.
        model: Pretraining model.
    """
    import torch

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for name, buffer in _POSITION_EMBEDDINGS.items():
        state[name] = model.get_buffer(buffer).detach().cpu()[None].clone()
    with atomic_path(path) as temporary:
        torch.save({"epoch": 0, "state_dict": {f"module.{name}": value for name, value in state.items()}}, temporary)


def strip_module_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the leading `module.` of the distributed wrapper."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def infer_variant(state: Mapping[str, Tensor], *, source: str = "the file") -> Variant:
    """Return the variant of pretraining weights by their shapes.

    Two variants have equal shapes: `hi_end_mae_vit_base_16p` and `hi_end_mae_vit_base_paper_16p`, which differ in the number
    of attention heads. The first one, that of the released code, is returned for both.

    Args:
        state: State dict without `module.` in its names.
        source: File that it comes from, for messages.

    Raises:
        InputError: `weights_unknown`.
    """
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
    """Load weights with the authors' names into a pretraining model.

    Args:
        model: Pretraining model.
        state_dict: The weights, with or without `module.` in their names.

    Raises:
        InputError: `weights_do_not_fit` with the list of unknown, missing and mis-shaped weights; `weights_positions` if a
            stored position embedding is not the one that is computed here.
    """
    state = strip_module_prefix(state_dict)
    for name, buffer in _POSITION_EMBEDDINGS.items():
        stored = state.pop(name, None)
        if stored is None:
            continue
        computed = model.get_buffer(buffer)
        same_shape = stored.shape[-2:] == computed.shape
        if not same_shape or (stored.reshape(computed.shape).to(computed) - computed).abs().max() > _POSITION_TOLERANCE:
            raise InputError(
                "weights_positions",
                f"The stored position embedding '{name}' {tuple(stored.shape)} is not the sin-cos table of this network.",
                "The weights were trained with another crop, or with learned positions, which are not supported.",
            )
    load_strict(model, state, what="pretraining weights")

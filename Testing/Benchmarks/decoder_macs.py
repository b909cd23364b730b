"""Multiply-accumulates (GMAC) of the decoders of the paper's Tables 6 and 7, for one crop of 96^3 voxels.

    python Testing/Benchmarks/decoder_macs.py

They are counted from the shapes that pass through real modules on torch's meta device, where nothing is computed. There are
three counts:

- paper: as the published numbers were counted: linear layers on all tokens, 5 for each element of a LayerNorm, attention
  products of plain blocks only (without those of cross blocks), a head of 12^3 in every row, without the projections from
  the encoder.
- full: the literal model with everything but the LayerNorms: all attention products, the projections, and the true head.
- engine: what the engine's decoder computes for the same loss: without head and last block for tokens that are not predicted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from HiEndMAECore.networks import HiEndMAE, get_variant
from HiEndMAECore.networks.variants import pretraining_arguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import oracle

VARIANTS = ("hi_end_mae_vit_base_16p", "hi_end_mae_vit_large_16p", "hi_end_mae_vit_large_12p")
PUBLISHED = {  # Tables 6 and 7, GMAC by variant and stages
    ("hi_end_mae_vit_large_12p", 0): 16.44,
    ("hi_end_mae_vit_large_12p", 1): 14.52,
    ("hi_end_mae_vit_large_12p", 2): 12.61,
    ("hi_end_mae_vit_large_12p", 3): 10.69,
    ("hi_end_mae_vit_base_16p", 0): 3.51,
    ("hi_end_mae_vit_base_16p", 3): 2.38,
    ("hi_end_mae_vit_large_16p", 0): 6.41,
    ("hi_end_mae_vit_large_16p", 3): 4.39,
}
_PAPER_HEAD = 12**3


def paper_macs(variant: str, stages: int) -> float:
    """Return the GMAC of a variant's decoder as the paper counts them."""
    model, inputs = _on_meta(oracle.Oracle, variant, stages)
    decoder = model.decoder
    decoder.head = nn.Linear(decoder.head.in_features, _PAPER_HEAD, device="meta")
    plain = {id(block.attn) for block in decoder.blocks}
    count = 0

    def add_module(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal count
        tokens = inputs[0].shape[1]
        if isinstance(module, nn.Linear):
            count += tokens * module.in_features * module.out_features
        elif isinstance(module, nn.LayerNorm):
            count += 5 * inputs[0].numel()
        elif id(module) in plain:
            count += 2 * tokens * tokens * out.shape[2]

    handles = [module.register_forward_hook(add_module) for module in decoder.modules()]
    with mock.patch.object(oracle.Oracle, "patchify", _no_target(_PAPER_HEAD)):
        model(*inputs)
    for handle in handles:
        handle.remove()
    return count / 1e9


def full_macs(variant: str, stages: int, *, engine: bool) -> float:
    """Return the GMAC of decoder, projections and head, of the engine's model or of the literal one."""
    model, inputs = _on_meta(HiEndMAE if engine else oracle.Oracle, variant, stages)
    encode = model.encoder if engine else lambda volume, visible: _literal_encoder(model, volume, visible)
    whole = _flops(lambda: model(*inputs))
    return (whole - _flops(lambda: encode(inputs[0], inputs[1][:, : model.visible]))) / 2e9


def _literal_encoder(model: Any, volume: Tensor, visible: Tensor) -> Tensor:
    x = model.encoder.patch_embed(volume)[:, : visible.shape[1]]
    x = torch.cat([model.encoder.cls_token, x], dim=1)
    for block in model.encoder.blocks:
        x = block(x)
    return x


def _flops(run: Callable[[], object]) -> int:
    with _plain_attention(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _on_meta(kind: Callable[..., Any], variant: str, stages: int) -> tuple[Any, tuple[Tensor, Tensor]]:
    arguments = pretraining_arguments(variant, cross_stages=stages)
    with torch.device("meta"):
        model = kind(**arguments).to("meta")  # the position tables are on the processor
        patches = model.grid[0] * model.grid[1] * model.grid[2]
        volume, order = torch.empty(1, 1, *arguments["image_size"]), torch.zeros(1, patches, dtype=torch.long)
    return model, (volume, order)


def _no_target(voxels: int) -> Callable[[Any, Tensor], Tensor]:
    return lambda model, volume: torch.empty(1, len(model.encoder_position_embedding), voxels, device="meta")


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Replace torch's fused attention by plain matrix products, which the counter can count."""

    def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", products):
        yield


def main() -> None:
    print("| variant | stages | published | paper's count | full | engine | engine saves against stages 0, full |")
    print("|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        without_stages = full_macs(variant, 0, engine=False)
        for stages in range(4):
            published = PUBLISHED.get((variant, stages))
            published_cell = "" if published is None else f"{published:.2f}"
            full, engine = full_macs(variant, stages, engine=False), full_macs(variant, stages, engine=True)
            cells = (
                get_variant(variant).title,
                stages,
                published_cell,
                f"{paper_macs(variant, stages):.3f}",
                f"{full:.3f}",
            )
            print("| " + " | ".join(map(str, (*cells, f"{engine:.3f}", f"{1 - engine / without_stages:.1%}"))) + " |")


if __name__ == "__main__":
    main()

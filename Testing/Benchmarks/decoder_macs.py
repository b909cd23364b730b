"""What the decoders of the paper's Tables 6 and 7 cost: multiply-accumulates (GMAC) of one 96^3 crop.

    python Testing/Benchmarks/decoder_macs.py

Counted from the shapes that pass through real modules (on torch's meta device: nothing is computed), three ways:

- paper: as the published numbers were counted (specification, section 4): linear layers on all tokens, 5 for each element of a
  LayerNorm, attention products of plain blocks only (those of cross blocks are not seen), head of 12^3 in every row,
  projections from the encoder left out.
- full: the literal model with nothing left out but the LayerNorms: all attention products, the projections, the true head.
- ours: what the engine's decoder does for the same loss: no head and no last block for tokens that are not asked for.
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
    """GMAC by the paper's counting."""
    model, inputs = _on_meta(oracle.Oracle, variant, stages)
    decoder = model.decoder
    decoder.head = nn.Linear(decoder.head.in_features, _PAPER_HEAD, device="meta")
    plain = {id(block.attn) for block in decoder.blocks}
    count = 0

    def see(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal count
        tokens = given[0].shape[1]
        if isinstance(module, nn.Linear):
            count += tokens * module.in_features * module.out_features
        elif isinstance(module, nn.LayerNorm):
            count += 5 * given[0].numel()
        elif id(module) in plain:
            count += 2 * tokens * tokens * out.shape[2]

    handles = [module.register_forward_hook(see) for module in decoder.modules()]
    with mock.patch.object(oracle.Oracle, "patchify", _no_target(_PAPER_HEAD)):
        model(*inputs)
    for handle in handles:
        handle.remove()
    return count / 1e9


def full_macs(variant: str, stages: int, *, ours: bool) -> float:
    """GMAC of decoder, projections and head: of the literal model, or of the engine's."""
    model, inputs = _on_meta(HiEndMAE if ours else oracle.Oracle, variant, stages)
    encode = model.encoder if ours else lambda volume, seen: _literal_encoder(model, volume, seen)
    whole = _flops(lambda: model(*inputs))
    return (whole - _flops(lambda: encode(inputs[0], inputs[1][:, : model.visible]))) / 2e9


def _literal_encoder(model: Any, volume: Tensor, seen: Tensor) -> Tensor:
    x = model.encoder.patch_embed(volume)[:, : seen.shape[1]]
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
    """The counter does not see torch's fused attention: it is shown the products that it stands for."""

    def products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v

    with mock.patch.object(nn.functional, "scaled_dot_product_attention", products):
        yield


def main() -> None:
    print("| variant | stages | published | paper's counting | full | ours | ours saves against stages 0, full |")
    print("|---|---|---|---|---|---|---|")
    for variant in VARIANTS:
        plain = full_macs(variant, 0, ours=False)
        for stages in range(4):
            published = PUBLISHED.get((variant, stages))
            told = "" if published is None else f"{published:.2f}"
            full, ours = full_macs(variant, stages, ours=False), full_macs(variant, stages, ours=True)
            cells = (get_variant(variant).title, stages, told, f"{paper_macs(variant, stages):.3f}", f"{full:.3f}")
            print("| " + " | ".join(map(str, (*cells, f"{ours:.3f}", f"{1 - ours / plain:.1%}"))) + " |")


if __name__ == "__main__":
    main()

"""Base class of U-shaped convolutional networks: stages of an encoder, a decoder, an output layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .interface import LayerGroup, SegmentationNetwork, group_by_depth


class EncoderDecoderNetwork(SegmentationNetwork):
    """A network with `encoder` (one module for each resolution, finest first), `decoder` and `head`."""

    encoder: nn.ModuleList
    decoder: nn.ModuleList
    head: nn.Module

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the output of each stage of the encoder (B, C_i, H_i, W_i, D_i), finest first."""
        maps = []
        for stage in self.encoder:
            image = stage(image)
            maps.append(image)
        return maps

    def layer_groups(self) -> list[LayerGroup]:
        """Return one group for each stage of the encoder, and one for everything after it."""
        rest = [module for name, module in self.named_children() if name != "encoder"]
        return group_by_depth(self.encoder, head=rest)


def require_levels(name: str, values: Sequence[object], least: int) -> None:
    """Check that a per-level argument has at least `least` values.

    Raises:
        ValueError: If it has fewer; the message names it.
    """
    if len(values) < least:
        raise ValueError(f"{name} is {tuple(values)}; it must name at least {least} levels")

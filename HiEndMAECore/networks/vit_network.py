"""What UNETR and HybridUNETR share: the configuration of the ViT encoder, and how it is transferred and grouped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .interface import LayerGroup, NetworkConfig, SegmentationNetwork, is_under
from .layers.vit import NORM_EPS, ViTEncoder
from .transfer import Drop, PretrainedState, Recompute, TransferRule

_POSITION_TABLES = ("encoder_pos_embed", "decoder_pos_embed")  # stored by the authors, computed here


@dataclass(frozen=True, kw_only=True)
class ViTNetworkConfig(NetworkConfig):
    """Arguments of a segmentation network with a ViT encoder.

    patch_size: edge of a patch in voxels. encoder_dim, encoder_depth, encoder_heads: of the encoder. feature_size:
    channels of the decoder at its finest resolution. class_token, norm_eps: as pretrained; `False, 1e-5` give the
    authors' own fine-tuning network, which is not the function that was pretrained.
    """

    patch_size: int
    encoder_dim: int
    encoder_depth: int = 12
    encoder_heads: int
    feature_size: int = 32
    class_token: bool = True
    norm_eps: float = NORM_EPS


class ViTSegmentationNetwork(SegmentationNetwork):
    """A segmentation network that reads the ViT encoder of Hi-End-MAE at several depths.

    Built from keyword arguments, those of its configuration. Image sizes must be divisible by the patch.
    """

    def __init__(self, **arguments: Any) -> None:
        """Build the encoder; subclasses add the decoder.

        Raises:
            TypeError: If an argument is unknown or missing.
            ValueError: If a size does not suit the network.
        """
        config = self.Config(**arguments)
        assert isinstance(config, ViTNetworkConfig)
        super().__init__(config)
        self.encoder = ViTEncoder(
            image_size=config.image_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            dim=config.encoder_dim,
            depth=config.encoder_depth,
            heads=config.encoder_heads,
            class_token=config.class_token,
            norm_eps=config.norm_eps,
        )

    @classmethod
    def build(cls, config: NetworkConfig) -> ViTSegmentationNetwork:
        return cls(**{name: getattr(config, name) for name in config.__dataclass_fields__})

    @staticmethod
    def size_divisor(config: ViTNetworkConfig) -> tuple[int, ...]:
        return (config.patch_size,) * config.spatial_dims

    @property
    def depth(self) -> int:
        """The number of transformer blocks of the encoder."""
        return self.encoder.depth

    def encode_tokens(self, patches: Tensor, positions: Tensor) -> dict[int, Tensor]:
        """Return the encoder's states for some patches of an image, see `ViTEncoder.encode`."""
        return self.encoder.encode(patches, positions)

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the states that the decoder reads as maps (B, dim, h, w, d) on the grid of patches, shallow first."""
        states = self.encoder(image)
        grid = [size // self.encoder.patch_size for size in image.shape[2:]]
        read = (*self.encoder.feature_layers, self.encoder.depth)
        return [tokens_to_feature_map(states[layer], grid) for layer in read]

    @classmethod
    def can_start_from(cls, source: PretrainedState) -> bool:
        """Return whether `source` holds a ViT encoder, whatever it was trained for."""
        return "encoder.patch_embed.proj.weight" in source.state

    def transfer_rules(self, source: PretrainedState) -> list[TransferRule]:
        """Return the default rules after those of the encoder: positions are computed, an unused cls token is dropped."""
        rules: list[TransferRule] = [Recompute(_POSITION_TABLES)]
        if self.encoder.cls_token is None:  # the authors' fine-tuning network
            rules.append(Drop(("encoder.cls_token",)))
        return [*rules, *super().transfer_rules(source)]

    def layer_groups(self) -> list[LayerGroup]:
        """Return the embedding, one group for each block, the final norm (at the depth of the last block), the rest."""
        depth, found = self.encoder.depth, list(self.encoder.named_parameters())

        def group(name: str, part: str, below: int) -> LayerGroup:
            return LayerGroup(name, tuple(p for n, p in found if is_under(n, part)), below, is_encoder=True)

        embedding = tuple(p for n, p in found if not is_under(n, "blocks") and not is_under(n, "norm"))
        blocks = [group(f"encoder block {i}", f"blocks.{i}", depth - 1 - i) for i in range(depth)]
        rest = tuple(p for n, p in self.named_parameters() if not is_under(n, "encoder"))
        return [
            LayerGroup("patch embedding", embedding, depth, is_encoder=True),
            *blocks,
            group("encoder norm", "norm", 0),
            LayerGroup("decoder", rest),
        ]


def tokens_to_feature_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Arrange tokens (B, [1 +] L, dim) on their grid (B, dim, h, w, d), without the cls token."""
    count = grid[0] * grid[1] * grid[2]
    return tokens[:, -count:].transpose(1, 2).reshape(len(tokens), -1, *grid)

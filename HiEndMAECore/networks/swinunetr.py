"""MONAI's Swin UNETR: a Swin transformer read at five resolutions by a convolutional decoder (arXiv 2201.01266).

Needs the package einops. Names of parameters are MONAI's below `net.`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from torch import Tensor

from HiEndMAECore.errors import MissingDependencyError

from .interface import LayerGroup, NetworkConfig, NetworkTraits, SegmentationNetwork, group_by_depth
from .registry import register_network

VARIANTS = {
    "swinunetr_small": {
        "title": "Swin UNETR with 12 features and one block a level, for computers without a GPU",
        "image_size": (64, 64, 64),
        "network": {"feature_size": 12, "depths": (1, 1, 1, 1), "heads": (3, 6, 12, 24)},
    },
    "swinunetr_base": {
        "title": "Swin UNETR with 48 features, for a GPU",
        "image_size": (96, 96, 96),
        "network": {"feature_size": 48, "depths": (2, 2, 2, 2), "heads": (3, 6, 12, 24)},
    },
}
_REDUCTION = 32  # of the coarsest level: a patch of 2 and four mergings


@dataclass(frozen=True, kw_only=True)
class SwinUNETRConfig(NetworkConfig):
    """Arguments of Swin UNETR.

    feature_size: channels of the first level, a multiple of 12. depths, heads: transformer blocks and attention heads of
    the four levels.
    """

    feature_size: int = 12
    depths: tuple[int, ...] = (1, 1, 1, 1)
    heads: tuple[int, ...] = (3, 6, 12, 24)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_size < 12 or self.feature_size % 12:
            raise ValueError(f"feature_size is {self.feature_size}; it must be a multiple of 12")
        for name in ("depths", "heads"):
            if len(getattr(self, name)) != 4:
                raise ValueError(f"{name} is {getattr(self, name)}; it must have four values")


@register_network("SwinUNETR", config=SwinUNETRConfig)
class SwinUNETR(SegmentationNetwork):
    """Swin UNETR: (B, C, H, W, D) -> logits (B, classes, H, W, D)."""

    traits = NetworkTraits(
        inplace_normalization=True,
        input_layers=(
            "net.swinViT.patch_embed.proj",
            "net.encoder1.layer.conv1.conv",
            "net.encoder1.layer.conv3.conv",
        ),
        head="net.out",
        pretrained_part="net.swinViT",
    )

    def __init__(self, config: SwinUNETRConfig) -> None:
        """Build the network.

        Raises:
            MissingDependencyError: If einops is not installed.
        """
        super().__init__(config)
        if find_spec("einops") is None:
            raise MissingDependencyError.of("einops", "to build the network swinunetr")
        sizes: dict[str, Any] = {
            "feature_size": config.feature_size,
            "depths": config.depths,
            "num_heads": config.heads,
        }
        if "img_size" in inspect.signature(MonaiSwinUNETR).parameters:  # MONAI before 1.5
            sizes["img_size"] = config.image_size
        self.net = MonaiSwinUNETR(
            in_channels=config.in_channels, out_channels=config.classes, spatial_dims=config.spatial_dims, **sizes
        )

    @staticmethod
    def size_divisor(config: SwinUNETRConfig) -> tuple[int, ...]:
        return (_REDUCTION,) * config.spatial_dims

    @classmethod
    def min_size(cls, config: SwinUNETRConfig) -> tuple[int, ...]:
        """Return two voxels on the coarsest level: a single one cannot be normalized."""
        return (2 * _REDUCTION,) * config.spatial_dims

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the states of the Swin transformer (B, C_i, H_i, W_i, D_i), half resolution first."""
        return self.net.swinViT(image, self.net.normalize)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits for image (B, C, H, W, D)."""
        return self.net(image)

    def layer_groups(self) -> list[LayerGroup]:
        """Return the patch embedding, the four levels of the transformer, and the convolutions."""
        swin = self.net.swinViT
        stages = [swin.patch_embed, swin.layers1, swin.layers2, swin.layers3, swin.layers4]
        return group_by_depth(stages, head=[part for name, part in self.net.named_children() if name != "swinViT"])

"""The ViT variants: sizes of the encoder, of the pretraining decoder and of the segmentation network. Plain data.

The first four are the paper's (Table S3; sizes as in the released code, which the released weights fit). The small ones
are for a small GPU and for computers without one: same depth and same queried layers, so that the method is the same.
Networks without a ViT encoder keep their variants in their own file, see `registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

OBJECTIVES = ("hi-end-mae", "mae")  # objectives of the masked autoencoder
DECODER_BLOCKS = 8  # Table 7: B dense-decoding stages replace 2 B of MAE's 8 self-attention blocks


@dataclass(frozen=True)
class Variant:
    """Sizes of one ViT variant.

    image_size: crop and tile in voxels. segmentation: registered name of the network that is fine-tuned with the
    encoder by default ("UNETR", the paper's, or "HybridUNETR").
    """

    name: str
    title: str
    image_size: tuple[int, int, int]
    patch_size: int
    encoder_dim: int
    encoder_depth: int
    encoder_heads: int
    decoder_dim: int
    decoder_heads: int
    feature_size: int
    segmentation: str = "UNETR"


_VARIANTS = (
    Variant("hi_end_mae_vit_base_16p", "ViT-B/16(768)", (96, 96, 96), 16, 768, 12, 12, 384, 12, 32),
    Variant("hi_end_mae_vit_large_16p", "ViT-B/16(1536)", (96, 96, 96), 16, 1536, 12, 16, 528, 16, 32),
    Variant("hi_end_mae_vit_large_12p", "ViT-B/12(1536)", (96, 96, 96), 12, 1536, 12, 16, 528, 16, 32),
    # The paper's own reading of the first: Table S3 gives it 16 heads on both sides, the released code 12.
    Variant("hi_end_mae_vit_base_paper_16p", "ViT-B/16(768), 16 heads", (96, 96, 96), 16, 768, 12, 16, 384, 16, 32),
    Variant("hi_end_mae_vit_small_8p", "ViT-S/8(384), for a small GPU", (64, 64, 64), 8, 384, 12, 6, 192, 6, 24),
    Variant(
        "hi_end_mae_vit_tiny_8p",
        "ViT-T/8(192), for computers without a GPU",
        (48, 48, 48),
        8,
        192,
        12,
        3,
        96,
        3,
        24,
        "HybridUNETR",
    ),
)


def list_vit_variants() -> tuple[str, ...]:
    """Return the names of the ViT variants, which `pretraining_arguments` takes."""
    return tuple(variant.name for variant in _VARIANTS)


def get_variant(name: str) -> Variant:
    """Return the ViT variant called `name`.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    for variant in _VARIANTS:
        if variant.name == name:
            return variant
    raise ValueError(f"there is no variant {name!r}; known are {', '.join(list_vit_variants())}")


def decoder_self_blocks(objective: str, cross_stages: int) -> int:
    """Return the self-attention blocks of the decoder: 8 for MAE, 8 - 2B beside B cross stages (Table 7)."""
    return DECODER_BLOCKS if objective == "mae" else DECODER_BLOCKS - 2 * cross_stages


def pretraining_arguments(
    variant: str | Variant,
    *,
    objective: str = "hi-end-mae",
    cross_stages: int = 3,
    mask_ratio: float = 0.75,
    in_channels: int = 1,
    image_size: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the arguments of the masked autoencoder as plain values for `model.json`.

    Args:
        variant: Name of a ViT variant, or its sizes.
        objective: "hi-end-mae" or "mae"; MAE has no cross stages.
        cross_stages: Stages of dense decoding, 0 to 3.
        mask_ratio: Share of the patches that are masked.
        in_channels: Channels of the image.
        image_size: Crop in voxels; None: the variant's.

    Raises:
        ValueError: If there is no such variant or objective.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}; it must be one of {OBJECTIVES}")
    sizes = asdict(get_variant(variant) if isinstance(variant, str) else variant)
    for unused in ("name", "title", "feature_size", "segmentation"):
        sizes.pop(unused)
    if image_size is not None:
        sizes["image_size"] = tuple(image_size)
    stages = 0 if objective == "mae" else cross_stages
    return {
        **sizes,
        "in_channels": in_channels,
        "mask_ratio": mask_ratio,
        "self_blocks": decoder_self_blocks(objective, stages),
        "cross_stages": stages,
    }


def vit_architecture(
    variant: Variant, *, classes: int, in_channels: int = 1, image_size: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return the segmentation network of a ViT variant as plain values: {"network", "variant", "arguments"}.

    The keys of format 1 of `model.json`, which stay as they are: defaults of the network are not written.

    Args:
        variant: Sizes.
        classes: Structures plus background.
        in_channels: Channels of the image.
        image_size: Crop and tile in voxels; None: the variant's.
    """
    return {
        "network": variant.segmentation,
        "variant": variant.name,
        "arguments": {
            "image_size": tuple(image_size or variant.image_size),
            "patch_size": variant.patch_size,
            "in_channels": in_channels,
            "classes": classes,
            "encoder_dim": variant.encoder_dim,
            "encoder_depth": variant.encoder_depth,
            "encoder_heads": variant.encoder_heads,
            "feature_size": variant.feature_size,
        },
    }

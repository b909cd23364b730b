"""Hi-End-MAE and MAE: reconstruct the masked patches of a crop.

The decoder of MAE lets visible tokens and mask tokens attend to one another. The decoder of Hi-End-MAE lets them *query
the encoder's visible tokens* by cross-attention (paper section 3.2, Eqs 1 to 4), stage after stage from the encoder's
deep layers to its shallow ones (section 3.3, Eq 5): the encoder itself has to carry what reconstruction needs, at every
depth that a segmentation network reads later.

One step, as in the paper's method section:

    patches    = patchify(image)                            # (B, L, p * p * p * C)
    order      = random_masking(B)                          # (B, L), the visible patches first
    states     = forward_encoder(patches, order)            # {layer: (B, 1 + S, dim)}
    prediction = forward_decoder(states, order)             # (B, M, p * p * p * C), the masked patches
    loss       = forward_loss(patches, prediction, order)   # on the masked patches, each normalized
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers.cross_attention import CrossBlock
from .layers.patches import gather_tokens, patch_grid, patchify, unpatchify
from .layers.position_embedding import sincos_position_embedding
from .layers.vit import NORM_EPS, Block, ViTEncoder, init_linear_weights, run_block
from .masking import num_visible_patches, random_masking, split_patches

_TARGET_EPS = 1e-6


@dataclass(frozen=True)
class Reconstruction:
    """The output of a pretraining model.

    loss: scalar, mean squared error over the voxels of the masked patches, in the units of the model's `targets`.
    prediction: (B, M, p * p * p * C), the masked patches in shuffled order, in the same units.
    hidden_states: {3, 6, 9, 12: (B, 1 + S, dim)} for 12 blocks, see `ViTEncoder`; {} from `Inpainting`.
    permutation: (B, L) long; its first S entries are the visible patches, the rest the masked ones.
    """

    loss: Tensor
    prediction: Tensor
    hidden_states: dict[int, Tensor]
    permutation: Tensor


class Decoder(nn.Module):
    """Self-attention blocks, one cross block for each stage, a norm, and a linear head onto the voxels of a patch."""

    def __init__(self, dim: int, heads: int, *, self_blocks: int, cross_stages: int, voxels: int) -> None:
        super().__init__()
        self.recompute = False
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(self_blocks))
        self.cross_attention_blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(cross_stages))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.head = nn.Linear(dim, voxels)
        init_linear_weights(self)

    def forward(self, x: Tensor, encoded: Sequence[Tensor], *, visible: int) -> Tensor:
        """Return the prediction of the masked patches (B, M, voxels).

        Args:
            x: Tokens (B, 1 + L, dim) in shuffled order: cls, visible, masked.
            encoded: Encoder tokens (B, 1 + S, dim), one for each stage.
            visible: Number of visible patches S.
        """
        # Only the masked patches are predicted: the last block, norm and head skip all other tokens.
        steps: list[tuple[nn.Module, tuple[Tensor, ...]]] = [(block, ()) for block in self.blocks]
        steps += [(stage, (tokens,)) for stage, tokens in zip(self.cross_attention_blocks, encoded)]
        for block, queried in steps[:-1]:
            x = run_block(block, x, *queried, recompute=self.recompute)
        block, queried = steps[-1]
        masked = x.shape[1] - 1 - visible
        return self.head(self.norm(run_block(block, x, *queried, masked, recompute=self.recompute)))


def _projection(encoder_dim: int, decoder_dim: int) -> nn.Linear:
    """Return a projection from encoder to decoder width; its bias keeps torch's default, as in the released code."""
    projection = nn.Linear(encoder_dim, decoder_dim)
    nn.init.xavier_uniform_(projection.weight)
    return projection


class HiEndMAE(nn.Module):
    """Masked autoencoder with `cross_stages` stages of hierarchical encoder-driven decoding (0: plain MAE).

    For 12 blocks, stage b queries the encoder states 9, then 6, then 3. As in MONAI's UNETR a state is counted by the
    zero-based index of its block, so that state 9 is the output of the tenth block.
    """

    unrotated_crops = False  # crops are flipped and turned at random
    decoder_position_embedding: Tensor

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        patch_size: int,
        in_channels: int = 1,
        encoder_dim: int,
        encoder_depth: int = 12,
        encoder_heads: int,
        decoder_dim: int,
        decoder_heads: int,
        mask_ratio: float = 0.75,
        self_blocks: int = 2,
        cross_stages: int = 3,
    ) -> None:
        """Build encoder and decoder.

        Args:
            image_size: Edges (H, W, D) of a crop in voxels.
            patch_size: Edge of a patch in voxels.
            in_channels: Channels of the image.
            encoder_dim: Width of the encoder's tokens.
            encoder_depth: Transformer blocks of the encoder.
            encoder_heads: Attention heads of the encoder.
            decoder_dim: Width of the decoder's tokens.
            decoder_heads: Attention heads of the decoder.
            mask_ratio: Fraction of the patches that are masked.
            self_blocks: Blocks of self-attention in the decoder.
            cross_stages: Stages of cross-attention to encoder states, 0 to 3.

        Raises:
            ValueError: If sizes do not fit each other; the message names the value.
        """
        super().__init__()
        if not 0 <= cross_stages <= 3:
            raise ValueError(f"cross_stages is {cross_stages}; it must be 0, 1, 2 or 3")
        self.patch_size = patch_size
        self.mask_ratio = mask_ratio
        self.encoder = ViTEncoder(
            image_size=image_size,
            patch_size=patch_size,
            in_channels=in_channels,
            dim=encoder_dim,
            depth=encoder_depth,
            heads=encoder_heads,
        )
        self.grid = patch_grid(image_size, patch_size)
        self.visible = num_visible_patches(len(self.encoder.position_embedding), mask_ratio)
        self.decoder = Decoder(
            decoder_dim,
            decoder_heads,
            self_blocks=self_blocks,
            cross_stages=cross_stages,
            voxels=patch_size**3 * in_channels,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        # One projection for each state, named 0 to 3 from shallow to deep; the deepest is the decoder's input, the
        # stages query the others, deepest first.
        self.stage_layers = tuple(reversed(self.encoder.feature_layers))[:cross_stages]
        names = {layer: str(index) for index, layer in enumerate((*self.encoder.feature_layers, encoder_depth))}
        self.projection_names = {layer: names[layer] for layer in (*self.stage_layers, encoder_depth)}
        self.encoder_to_decoder = nn.ModuleDict(
            {name: _projection(encoder_dim, decoder_dim) for name in sorted(self.projection_names.values())}
        )
        self.register_buffer(
            "decoder_position_embedding", sincos_position_embedding(self.grid, decoder_dim), persistent=False
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of blocks and compute the rest again in the backward pass: less memory, more time."""
        self.encoder.recompute = self.decoder.recompute = enable

    def forward(
        self, volume: Tensor, permutation: Tensor | None = None, valid_mask: Tensor | None = None
    ) -> Reconstruction:
        """Mask, encode, decode and compare.

        Args:
            volume: (B, C, H, W, D) in [0, 1].
            permutation: (B, L) long, see `random_masking`; None: drawn.
            valid_mask: (B, 1, H, W, D), True for voxels of the scan, False for padding, which the loss skips; None: all.
        """
        if permutation is None:
            permutation = self.random_masking(len(volume))
        permutation = permutation.to(volume.device)
        patches = self.patchify(volume)
        states = self.forward_encoder(patches, permutation)
        prediction = self.forward_decoder(states, permutation)
        loss = self.forward_loss(patches, prediction, permutation, valid_mask)
        return Reconstruction(loss, prediction, states, permutation)

    def patchify(self, volume: Tensor) -> Tensor:
        """Cut crops (B, C, H, W, D) into patch vectors (B, L, p * p * p * C)."""
        return patchify(volume, self.patch_size)

    def random_masking(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the order of the patches of each crop (B, L), the visible ones first."""
        return random_masking(batch, len(self.decoder_position_embedding), rng=generator)

    def forward_encoder(self, patches: Tensor, permutation: Tensor) -> dict[int, Tensor]:
        """Encode the visible patches; returns the states {3, 6, 9, 12: (B, 1 + S, dim)} for 12 blocks."""
        visible, _ = split_patches(permutation, self.visible)
        return self.encoder.encode(gather_tokens(patches, visible), self.encoder.position_embedding[visible])

    def forward_decoder(self, states: dict[int, Tensor], permutation: Tensor) -> Tensor:
        """Predict the masked patches (B, M, p * p * p * C) from the encoder's states."""
        tokens = self._project(states, self.encoder.depth)
        masked = permutation.shape[1] - self.visible
        masks = self.mask_token.expand(len(tokens), masked, -1).to(tokens.dtype)
        shuffled = torch.cat([tokens[:, 1:], masks], dim=1) + self.decoder_position_embedding[permutation]
        x = torch.cat([tokens[:, :1].to(shuffled.dtype), shuffled], dim=1)  # the cls token has no position
        queried = [self._project(states, layer) for layer in self.stage_layers]
        return self.decoder(x, queried, visible=self.visible)

    def forward_loss(
        self, patches: Tensor, prediction: Tensor, permutation: Tensor, valid_mask: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error over the voxels of the masked patches, each patch normalized."""
        _, masked = split_patches(permutation, self.visible)
        target = gather_tokens(patches, masked)
        if valid_mask is None:
            return F.mse_loss(prediction.float(), normalize_patches(target).float())
        channels = patches.shape[2] // self.patch_size**3
        valid_mask = valid_mask.expand(-1, channels, -1, -1, -1).float()
        counted = gather_tokens(self.patchify(valid_mask), masked)
        target = normalize_patches(target, counted)
        return mean_over_crops((prediction.float() - target.float()) ** 2, counted)

    def _project(self, states: dict[int, Tensor], layer: int) -> Tensor:
        """Bring an encoder state to the decoder's width."""
        return self.encoder_to_decoder[self.projection_names[layer]](states[layer])

    def targets(self, volume: Tensor) -> Tensor:
        """Return the target of each patch if it were masked (B, L, p * p * p * C); 0 is the patch's mean."""
        return normalize_patches(self.patchify(volume))

    @torch.no_grad()
    def reconstruct_images(self, volume: Tensor, output: Reconstruction) -> tuple[Tensor, Tensor]:
        """Return the masked and the reconstructed volume, both (B, C, H, W, D).

        Masked patches are zero in the first. In the second, predictions get the mean and spread of the reference patch
        (the exact inverse of the loss's normalization); visible patches are shown as they are.
        """
        patches = self.patchify(volume)
        masked = split_patches(output.permutation, self.visible)[1][:, :, None].expand(-1, -1, patches.shape[2])
        reference = patches.gather(1, masked)
        scale = (reference.var(-1, unbiased=False, keepdim=True) + _TARGET_EPS).sqrt()
        predicted = output.prediction.to(reference.dtype) * scale + reference.mean(-1, keepdim=True)
        erased = patches.scatter(1, masked, torch.zeros_like(reference))
        filled = patches.scatter(1, masked, predicted)
        return unpatchify(erased, self.grid, self.patch_size), unpatchify(filled, self.grid, self.patch_size)


class MAE(HiEndMAE):
    """Plain masked autoencoder: no dense-decoding stage, 8 self-attention blocks by default."""

    def __init__(self, *, self_blocks: int = 8, **sizes: object) -> None:
        super().__init__(self_blocks=self_blocks, cross_stages=0, **sizes)  # type: ignore[arg-type]


def mean_over_crops(errors: Tensor, counted: Tensor) -> Tensor:
    """Return the mean of errors (B, M, voxels) where `counted` is 1, for each crop, averaged over the crops.

    Crop by crop, so that a batch that is shared by several processes has the same mean as the whole.
    """
    return ((errors * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)).mean()


def normalize_patches(patches: Tensor, counted: Tensor | None = None) -> Tensor:
    """Normalize each patch to zero mean and unit spread over its voxels (MAE's `norm_pix_loss`).

    The variance is biased, and a small constant is added to it before the root. A constant patch, such as air, becomes 0.

    Args:
        patches: (B, N, voxels).
        counted: Of the same shape: 1 for voxels of the scan, 0 for padding, which mean and spread skip; None: all.
    """
    if counted is None:
        return F.layer_norm(patches, patches.shape[-1:], eps=_TARGET_EPS)
    voxels = counted.sum(-1, keepdim=True).clamp(min=1)
    centered = patches - (patches * counted).sum(-1, keepdim=True) / voxels
    variance = (centered.square() * counted).sum(-1, keepdim=True) / voxels
    return centered * (variance + _TARGET_EPS).rsqrt()

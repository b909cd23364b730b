"""Hi-End-MAE and MAE: rebuild the masked patches of a crop.

MAE's decoder lets visible and mask tokens attend to one another. Hi-End-MAE's decoder lets them *query the encoder's
visible tokens* by cross-attention (paper section 3.2, Eqs 1 to 4), stage after stage from the encoder's deep layers to its
shallow ones (section 3.3, Eq 5): the encoder itself has to carry what reconstruction needs, at every depth that a
segmentation network reads later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from HiEndMAECore.networks.layers.patches import gather_tokens, patch_grid, patchify, unpatchify
from HiEndMAECore.networks.layers.position_embedding import sincos_position_embedding
from HiEndMAECore.networks.layers.vit import (
    MLP,
    NORM_EPS,
    Attention,
    Block,
    ViTEncoder,
    attention,
    init_linear_weights,
    run_block,
)

from .masking import num_visible_patches


@dataclass(frozen=True)
class Reconstruction:
    """What a pretraining model returns.

    loss: scalar, mean squared error over the voxels of the masked patches, in the units of the model's `targets`.
    prediction: (B, M, p * p * p * C), the masked patches in shuffled order, in the same units.
    hidden_states: {3, 6, 9, 12: (B, 1 + S, dim)} for 12 blocks, see `ViTEncoder`; {} from `Inpainting`.
    permutation: (B, L) long; its first S entries are the visible patches, the rest the masked.
    """

    loss: Tensor
    prediction: Tensor
    hidden_states: dict[int, Tensor]
    permutation: Tensor


class CrossAttention(nn.Module):
    """Queries (B, N, dim) over encoder tokens (B, S, dim): encoder tokens are not normalised and carry no position."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, encoded: Tensor) -> Tensor:
        b, n, dim = x.shape
        q = self.q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.kv(encoded).reshape(b, encoded.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(b, n, dim))


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to the encoder, feed-forward, each residual (Eqs 2 to 4)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm0 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, encoded: Tensor, last: int | None = None) -> Tensor:
        """With `last`, only that many of the last tokens come out: (B, last, dim)."""
        x = (x if last is None else x[:, -last:]) + self.self_attn(self.norm0(x), last)
        x = x + self.cross_attn(self.norm1(x), encoded)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """Self-attention blocks, then one cross block a stage, norm, and a head onto the patch's voxels."""

    def __init__(self, dim: int, heads: int, *, self_blocks: int, cross_stages: int, voxels: int) -> None:
        super().__init__()
        self.recompute = False
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(self_blocks))
        self.cross_attention_blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(cross_stages))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.head = nn.Linear(dim, voxels)
        init_linear_weights(self)

    def forward(self, x: Tensor, encoded: Sequence[Tensor], *, visible: int) -> Tensor:
        """x (B, 1 + L, dim) in shuffled order, encoded: one (B, 1 + S, dim) a stage -> (B, M, voxels)."""
        # Only the masked patches are asked for: the last block, norm and head leave out all other tokens.
        steps: list[tuple[nn.Module, tuple[Tensor, ...]]] = [(block, ()) for block in self.blocks]
        steps += [(stage, (tokens,)) for stage, tokens in zip(self.cross_attention_blocks, encoded)]
        for block, queried in steps[:-1]:
            x = run_block(block, x, *queried, recompute=self.recompute)
        block, queried = steps[-1]
        masked = x.shape[1] - 1 - visible
        return self.head(self.norm(run_block(block, x, *queried, masked, recompute=self.recompute)))


def _projection(encoder_dim: int, decoder_dim: int) -> nn.Linear:
    """Encoder to decoder width; its bias keeps torch's start, as in the released code."""
    projection = nn.Linear(encoder_dim, decoder_dim)
    nn.init.xavier_uniform_(projection.weight)
    return projection


class HiEndMAE(nn.Module):
    """Masked autoencoder with `cross_stages` stages of hierarchical encoder-driven decoding (0: plain MAE).

    Stage b queries encoder list index 9, then 6, then 3 (for 12 blocks). Raises `ValueError` for sizes that do not fit.
    """

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
        self.visible = num_visible_patches(len(self.encoder.positions), mask_ratio)
        self.decoder = Decoder(
            decoder_dim,
            decoder_heads,
            self_blocks=self_blocks,
            cross_stages=cross_stages,
            voxels=patch_size**3 * in_channels,
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        # One projection a state, named 0 to 3 from shallow to deep; the deepest is the decoder's input, the others are
        # what the stages query, deepest first.
        self.stage_layers = tuple(reversed(self.encoder.feature_layers))[:cross_stages]
        names = {tap: str(index) for index, tap in enumerate((*self.encoder.feature_layers, encoder_depth))}
        self.projection_names = {tap: names[tap] for tap in (*self.stage_layers, encoder_depth)}
        self.encoder_to_decoder = nn.ModuleDict(
            {name: _projection(encoder_dim, decoder_dim) for name in sorted(self.projection_names.values())}
        )
        self.register_buffer(
            "decoder_position_embedding", sincos_position_embedding(self.grid, decoder_dim), persistent=False
        )

    decoder_position_embedding: Tensor

    def set_grad_checkpointing(self, on: bool = True) -> None:
        """Keep only the blocks' inputs and compute the rest again in the backward pass: less memory, more time."""
        self.encoder.recompute = self.decoder.recompute = on

    def draw_permutation(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """(B, L) long: a random order of the patches for each crop, drawn on the processor."""
        return torch.rand(batch, len(self.decoder_position_embedding), generator=generator).argsort(dim=1)

    def forward(
        self, volume: Tensor, permutation: Tensor | None = None, inside: Tensor | None = None
    ) -> Reconstruction:
        """volume (B, C, H, W, D) in [0, 1]; permutation (B, L) long, drawn when None.

        inside: (B, 1, H, W, D), True where a voxel is the scan's and not padding; only those count in the loss. None: all.
        """
        if permutation is None:
            permutation = self.draw_permutation(len(volume))
        permutation = permutation.to(volume.device)
        visible, masked = permutation[:, : self.visible], permutation[:, self.visible :]

        patches = patchify(volume, self.patch_size)
        states = self.encoder.encode(gather_tokens(patches, visible), self.encoder.positions[visible])
        prediction = self.decoder(
            self._decoder_input(states, permutation),
            [self._project(states, tap) for tap in self.stage_layers],
            visible=self.visible,
        )
        hidden = gather_tokens(patches, masked)
        if inside is None:
            loss = F.mse_loss(prediction.float(), normalize_patches(hidden).float())
        else:
            counted = gather_tokens(patchify(inside.expand_as(volume).float(), self.patch_size), masked)
            target = normalize_patches(hidden, counted)
            loss = mean_over_crops((prediction.float() - target.float()) ** 2, counted)
        return Reconstruction(loss, prediction, states, permutation)

    def _decoder_input(self, states: dict[int, Tensor], permutation: Tensor) -> Tensor:
        """[cls, visible, mask tokens] with the positions of the shuffled patches; cls has none."""
        tokens = self._project(states, self.encoder.depth)
        masked = permutation.shape[1] - self.visible
        masks = self.mask_token.expand(len(tokens), masked, -1).to(tokens.dtype)
        shuffled = torch.cat([tokens[:, 1:], masks], dim=1) + self.decoder_position_embedding[permutation]
        return torch.cat([tokens[:, :1].to(shuffled.dtype), shuffled], dim=1)

    def _project(self, states: dict[int, Tensor], tap: int) -> Tensor:
        return self.encoder_to_decoder[self.projection_names[tap]](states[tap])

    def targets(self, volume: Tensor) -> Tensor:
        """(B, L, p * p * p * C): what is to be predicted of each patch, were it masked; 0 is its mean."""
        return normalize_patches(patchify(volume, self.patch_size))

    @torch.no_grad()
    def reconstruct_images(self, volume: Tensor, output: Reconstruction) -> tuple[Tensor, Tensor]:
        """(masked volume, rebuilt volume), both (B, C, H, W, D): masked patches are zero, then predicted.

        Predictions are brought back with the true patch's mean and spread (the exact inverse of the loss's
        normalisation); visible patches are shown as they are.
        """
        patches = patchify(volume, self.patch_size)
        masked = output.permutation[:, self.visible :, None].expand(-1, -1, patches.shape[2])
        truth = patches.gather(1, masked)
        scale = (truth.var(-1, unbiased=False, keepdim=True) + _TARGET_EPS).sqrt()
        guess = output.prediction.to(truth.dtype) * scale + truth.mean(-1, keepdim=True)
        hidden = patches.scatter(1, masked, torch.zeros_like(truth))
        rebuilt = patches.scatter(1, masked, guess)
        return unpatchify(hidden, self.grid, self.patch_size), unpatchify(rebuilt, self.grid, self.patch_size)


class MAE(HiEndMAE):
    """Plain masked autoencoder: no dense-decoding stage, 8 self-attention blocks by default."""

    def __init__(self, *, self_blocks: int = 8, **sizes: object) -> None:
        super().__init__(self_blocks=self_blocks, cross_stages=0, **sizes)  # type: ignore[arg-type]


_TARGET_EPS = 1e-6


def mean_over_crops(errors: Tensor, counted: Tensor) -> Tensor:
    """Scalar: each crop's mean of errors (B, M, voxels) where `counted` is 1, averaged over the crops.

    Crop by crop, so that a batch that is shared by several processes has the same mean as the whole.
    """
    return ((errors * counted).sum((1, 2)) / counted.sum((1, 2)).clamp(min=1)).mean()


def normalize_patches(patches: Tensor, counted: Tensor | None = None) -> Tensor:
    """Each patch to zero mean and unit spread over its voxels (biased variance, eps inside the root); air becomes 0.

    counted, of the same shape: 1 where a voxel is the scan's and not padding, which mean and spread leave out.
    """
    if counted is None:
        return F.layer_norm(patches, patches.shape[-1:], eps=_TARGET_EPS)
    voxels = counted.sum(-1, keepdim=True).clamp(min=1)
    centred = patches - (patches * counted).sum(-1, keepdim=True) / voxels
    variance = (centred.square() * counted).sum(-1, keepdim=True) / voxels
    return centred * (variance + _TARGET_EPS).rsqrt()

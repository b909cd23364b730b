"""The ViT encoder, one function for pretraining and fine-tuning, and the blocks it is made of.

Pre-norm blocks, exact GELU, biases everywhere, no dropout; a learned cls token without position; a fixed 3D sine-cosine
position embedding computed for the grid at hand. Parameter names are those of the authors' weights (which keep timm's
layout), so that loading them needs no renaming (paper section 3 and the released code).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .patches import PatchEmbedding, gather_tokens, patch_grid, patchify
from .position_embedding import sincos_position_embedding

NORM_EPS = 1e-6
MLP_RATIO = 4
_PLAIN_TOKENS = 1024  # with more tokens the attention weights of all heads would fill the memory


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return scaled dot-product attention (B, heads, N, d) of q (B, heads, N, d) to k and v (B, heads, S, d).

    torch's fused form is the faster one except in one case: its backward pass in bf16 on a CPU, where plain matrix
    products took 0.27 to 0.55 of its time at 55 to 513 tokens (AMD EPYC with AVX-512 BF16, torch 2.13).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and q.shape[2] <= _PLAIN_TOKENS:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"a width of {dim} is not divisible by {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """Let all tokens attend to all; with `last`, compute only that many of the last tokens: (B, last, dim)."""
        b, n, dim = x.shape
        if last is None:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, -last:], weight[:dim], bias[:dim]).reshape(b, last, self.heads, -1).transpose(1, 2)
            kv = F.linear(x, weight[dim:], bias[dim:])
            k, v = kv.reshape(b, n, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """The feed-forward sub-layer: (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, MLP_RATIO * dim)
        self.fc2 = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: (B, N, dim) -> (B, N, dim)."""

    def __init__(self, dim: int, heads: int, *, norm_eps: float = NORM_EPS) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, last: int | None = None) -> Tensor:
        """Return all tokens, or only the last `last` of them: (B, last, dim)."""
        x = (x if last is None else x[:, -last:]) + self.attn(self.norm1(x), last)
        return x + self.mlp(self.norm2(x))


class ViTEncoder(nn.Module):
    """The encoder of visible patches.

    image_size: crop in voxels (H, W, D); `forward` accepts other sizes that are divisible by the patch.
    class_token, norm_eps: as in pretraining (True, 1e-6); False and 1e-5 reproduce the authors' fine-tuning network.
    """

    position_embedding: Tensor

    def __init__(
        self,
        *,
        image_size: Sequence[int],
        patch_size: int,
        in_channels: int,
        dim: int,
        depth: int,
        heads: int,
        class_token: bool = True,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        if depth < 4:
            raise ValueError(
                f"an encoder of {depth} blocks is too shallow: its states are taken at a quarter of its depth"
            )
        self.patch_size = patch_size
        self.dim = dim
        self.depth = depth
        self.recompute = False  # see `HiEndMAE.set_grad_checkpointing`
        self.grid = patch_grid(image_size, patch_size)
        # Zero-based indices of the block outputs that decoders read (3, 6, 9 for 12 blocks).
        self.feature_layers = (depth // 4, depth // 2, 3 * depth // 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None
        self.patch_embed = PatchEmbedding(patch_size, in_channels, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, norm_eps=norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.register_buffer("position_embedding", sincos_position_embedding(self.grid, dim), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize: Xavier for every Linear and the patch embedding, zero Linear biases, a cls token of std 0.02."""
        init_linear_weights(self)
        weight = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.data.view(weight.shape[0], -1))
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def position_embedding_for(self, grid: tuple[int, int, int], like: Tensor) -> Tensor:
        """Return the position embedding (L, dim) of `grid`, on the device of `like`."""
        return (
            self.position_embedding if grid == self.grid else sincos_position_embedding(grid, self.dim).to(like.device)
        )

    def forward(self, volume: Tensor, visible: Tensor | None = None) -> dict[int, Tensor]:
        """Encode the visible patches of a volume.

        Args:
            volume: (B, C, H, W, D).
            visible: (B, S) long, indices of the visible patches; None: all, in order.

        Returns:
            The raw outputs of the feature layers and, under `depth`, the normalized last one:
            {3, 6, 9, 12: (B, 1 + S, dim)} for 12 blocks, without the leading 1 if there is no cls token.
        """
        patches = patchify(volume, self.patch_size)
        positions = self.position_embedding_for(patch_grid(volume.shape[2:], self.patch_size), volume)
        return self.encode(gather_tokens(patches, visible), positions if visible is None else positions[visible])

    def encode(self, patches: Tensor, positions: Tensor) -> dict[int, Tensor]:
        """Encode patch vectors (B, S, p * p * p * C) with position embeddings (S, dim) or (B, S, dim), see `forward`."""
        x = self.patch_embed(patches) + positions
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        states = {}
        for index, block in enumerate(self.blocks):
            x = run_block(block, x, recompute=self.recompute)
            if index in self.feature_layers:
                states[index] = x
        states[self.depth] = self.norm(x)
        return states


def run_block(block: nn.Module, *inputs: Any, recompute: bool) -> Tensor:
    """Return `block(*inputs)`; with `recompute`, its inner activations are not kept for the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def init_linear_weights(module: nn.Module) -> None:
    """Initialize every Linear inside `module` with Xavier-uniform weights and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

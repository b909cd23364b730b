"""The test oracle of the pretraining model: the method's specification, implemented literally from stock torch modules.

The tests compare the engine's fast model with it (loss, prediction, every gradient), and `Benchmarks/pretraining_step.py`
compares their times. Nothing is optimized here: a strided Conv3d embeds the patches, attention is an explicit softmax, and
all blocks and the head compute every token. Parameters have the names of the authors' code, so that one state dict fits both
models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, dim))


class CrossAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        b, n, dim = x.shape
        q = self.q(x).reshape(b, n, self.heads, dim // self.heads).transpose(1, 2)
        k, v = self.kv(y).reshape(b, y.shape[1], 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, dim))


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.attn, self.mlp = SelfAttention(dim, heads), FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm0, self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.self_attn, self.cross_attn, self.mlp = (
            SelfAttention(dim, heads),
            CrossAttention(dim, heads),
            FeedForward(dim),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm0(x))
        x = x + self.cross_attn(self.norm1(x), y)
        return x + self.mlp(self.norm2(x))


class Embedding(nn.Module):
    def __init__(self, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, volume: Tensor) -> Tensor:
        return self.proj(volume).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    def __init__(self, patch: int, channels: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = Embedding(patch, channels, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)


class Decoder(nn.Module):
    def __init__(self, dim: int, heads: int, self_blocks: int, stages: int, voxels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(self_blocks))
        self.cross_attention_blocks = nn.ModuleList(CrossBlock(dim, heads) for _ in range(stages))
        self.norm, self.head = nn.LayerNorm(dim, eps=EPS), nn.Linear(dim, voxels)


class Oracle(nn.Module):
    """The Hi-End-MAE model, with the arguments and the state dict of `HiEndMAE`."""

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
        self.patch = patch_size
        self.grid = [edge // patch_size for edge in image_size]
        patches = self.grid[0] * self.grid[1] * self.grid[2]
        self.visible = int(patches * (1 - mask_ratio) + 1e-6)
        self.encoder = Encoder(patch_size, in_channels, encoder_dim, encoder_depth, encoder_heads)
        self.decoder = Decoder(decoder_dim, decoder_heads, self_blocks, cross_stages, patch_size**3 * in_channels)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        feature_layers = [encoder_depth // 4, encoder_depth // 2, encoder_depth * 3 // 4]
        self.queried = [(feature_layers[2], "2"), (feature_layers[1], "1"), (feature_layers[0], "0")][:cross_stages]
        names = sorted(["3", *(name for _, name in self.queried)])
        self.encoder_to_decoder = nn.ModuleDict({name: nn.Linear(encoder_dim, decoder_dim) for name in names})
        self.register_buffer("encoder_position_embedding", self._positions(encoder_dim), persistent=False)
        self.register_buffer("decoder_position_embedding", self._positions(decoder_dim), persistent=False)

    encoder_position_embedding: Tensor
    decoder_position_embedding: Tensor

    def _positions(self, dim: int) -> Tensor:
        """Return the sine and cosine position embeddings (L, dim) of the grid."""
        omega = torch.tensor([10000 ** (-k / (dim // 6)) for k in range(dim // 6)], dtype=torch.float64)
        rows = []
        for h in range(self.grid[0]):
            for w in range(self.grid[1]):
                for d in range(self.grid[2]):
                    waves = [wave(index * omega) for index in (h, w, d) for wave in (torch.sin, torch.cos)]
                    rows.append(torch.cat(waves))
        return torch.stack(rows).float()

    def patchify(self, volume: Tensor) -> Tensor:
        """Return the patches (B, L, patch voxels) of a volume (B, C, H, W, D)."""
        p = self.patch
        cubes = volume.unfold(2, p, p).unfold(3, p, p).unfold(4, p, p)  # (B, C, h, w, d, p, p, p)
        return cubes.permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(4).flatten(1, 3)

    def forward(self, volume: Tensor, permutation: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the prediction (B, masked, patch voxels) of the masked patches.

        Args:
            volume: Crops (B, C, H, W, D).
            permutation: Order (B, L) of the patches; the first ones are visible.
        """
        crops = torch.arange(len(volume), device=volume.device)[:, None]
        visible, masked = permutation[:, : self.visible], permutation[:, self.visible :]

        x = self.encoder.patch_embed(volume) + self.encoder_position_embedding
        x = torch.cat([self.encoder.cls_token.expand(len(volume), -1, -1), x[crops, visible]], dim=1)
        outputs = []
        for block in self.encoder.blocks:
            x = block(x)
            outputs.append(x)
        x = self.encoder_to_decoder["3"](self.encoder.norm(x))

        mask_tokens = self.mask_token.expand(len(volume), masked.shape[1], -1)
        positions = self.decoder_position_embedding[permutation]
        x = torch.cat([x[:, :1], torch.cat([x[:, 1:], mask_tokens.to(x.dtype)], dim=1) + positions], dim=1)
        for block in self.decoder.blocks:
            x = block(x)
        for block, (index, name) in zip(self.decoder.cross_attention_blocks, self.queried):
            x = block(x, self.encoder_to_decoder[name](outputs[index]))
        prediction = self.decoder.head(self.decoder.norm(x))[:, 1 + self.visible :]

        target = self.patchify(volume)[crops, masked]
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, unbiased=False, keepdim=True)
        target = (target - mean) / (variance + EPS).sqrt()
        return ((prediction.float() - target) ** 2).mean(), prediction

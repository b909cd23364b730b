"""The cross-attention block of Hi-End-MAE's decoder (paper section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from .vit import MLP, NORM_EPS, Attention, attention


class CrossAttention(nn.Module):
    """Cross-attention of queries (B, N, dim) to encoder tokens (B, S, dim), which are not normalized and carry no position."""

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
    """Self-attention, cross-attention to the encoder, feed-forward, each with a residual connection (Eqs 2 to 4)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm0 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.self_attn = Attention(dim, heads)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = MLP(dim)

    def forward(self, x: Tensor, encoded: Tensor, last: int | None = None) -> Tensor:
        """Return all tokens, or only the last `last` of them: (B, last, dim)."""
        x = (x if last is None else x[:, -last:]) + self.self_attn(self.norm0(x), last)
        x = x + self.cross_attn(self.norm1(x), encoded)
        return x + self.mlp(self.norm2(x))

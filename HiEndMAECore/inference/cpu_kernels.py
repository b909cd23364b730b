"""A network on the CPU without gradients: the same sums in less time and less memory.

    with Lean(full=True):
        logits = network(tiles)

Three steps of a UNETR's decoder, where its time and memory go, are done otherwise (seconds and bytes: see
`Testing/Benchmarks/results.md`):

- convolutions go slab by slab, so that the layout oneDNN works in is never held for a whole tile; in 32 bits they go to
  oneDNN where torch would choose its own, slower one (one tile, up to 20480 values a plane and channel);
- transposed convolutions whose kernel is their stride are one matrix product;
- instance normalisation works in place: its input is a convolution's output, which nothing else reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_SLAB = 2**24  # bytes of input; of less than two slabs, all at once is faster


class CpuInferenceKernels(TorchFunctionMode):
    """Does these steps so inside the block. full: 32-bit numbers, no autocast. It is for networks in which nothing but
    the normalisation reads what is normalised, and does nothing where gradients are wanted."""

    def __init__(self, *, full: bool) -> None:
        super().__init__()
        self.full = full and torch.backends.mkldnn.is_available()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            if func is F.conv3d and not kwargs and len(args) == 7 and isinstance(args[4], tuple):
                return self._convolve(*args)
            if func is F.conv_transpose3d and not kwargs and _is_one_product(*args):
                return _spread(args[0], args[1])
            if func is F.instance_norm and _is_large(args[0].nbytes) and not _is_learned(**kwargs):
                return _normalize(*args, **kwargs)
        return func(*args, **kwargs)

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        def convolve(part: Tensor) -> Tensor:
            if self.full and weight.shape[2] > 1 and part.dtype == torch.float32:
                return torch.mkldnn_convolution(part.contiguous(), weight, bias, padding, stride, dilation, groups)
            return F.conv3d(part, weight, bias, stride, padding, dilation, groups)

        size, count = x.nbytes, x.shape[2]
        if not _is_large(size) or stride != (1, 1, 1) or dilation != (1, 1, 1):
            return convolve(x)
        rows, reach, result = max(1, count * _SLAB // size), padding[0], None
        for first in range(0, count, rows):
            end = min(count, first + rows)
            low = max(0, first - reach)  # what a slab lacks at its sides lies beside it; at the tile's ends, padding
            part = convolve(x[:, :, low : min(count, end + reach)].contiguous())
            if result is None:
                result = part.new_empty((*part.shape[:2], count, *part.shape[3:]))
            result[:, :, first:end] = part[:, :, first - low : end - low]
            del part
        assert result is not None
        return result


def _is_learned(*, running_mean: Tensor | None = None, weight: Tensor | None = None, **_: Any) -> bool:
    return running_mean is not None or weight is not None


def _is_large(size: int) -> bool:
    return size >= 2 * _SLAB


def _is_one_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, more: Any = 0, *_: Any
) -> bool:
    spread = bias is None and stride == tuple(weight.shape[2:]) and not any(padding) and not any(more)
    return spread and _is_large(x.nbytes // x.shape[1] * weight[0].numel())


def _spread(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W, D) and (C, K, p, q, r) -> (B, K, pH, qW, rD): each voxel becomes a block of its own."""
    b, _, h, w, d = x.shape
    _, k, p, q, r = weight.shape
    matrix, result = weight.flatten(1).T, None
    for row in range(h):
        blocks = (matrix @ x[:, :, row].flatten(2)).view(b, k, p, q, r, w, d).permute(0, 1, 2, 5, 3, 6, 4)
        if result is None:
            result = blocks.new_empty((b, k, h, p, w, q, d, r))
        result[:, :, row] = blocks
    assert result is not None
    return result.view(b, k, h * p, w * q, d * r)


def _normalize(x: Tensor, *_: Any, eps: float = 1e-5, **__: Any) -> Tensor:
    """Each channel of each tile to mean 0 and variance 1, in place, counted in 32 bits."""
    x = x.contiguous()
    for channel in x.view(x.shape[0] * x.shape[1], -1):
        values = channel.float()
        values.sub_(values.mean())
        values.mul_(torch.rsqrt(values.dot(values) / len(values) + eps))
        if values.dtype != channel.dtype:
            channel.copy_(values)
    return x

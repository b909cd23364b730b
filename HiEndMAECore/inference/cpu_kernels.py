"""CPU inference kernels: the same results as the plain network in less time and less memory.

    with CpuInferenceKernels(full=True, inplace_normalization=True):
        logits = network(tiles)

Three operations of a convolutional decoder, which take most of its time and memory, are computed differently (seconds and
bytes: see `Testing/Benchmarks/results.md`):

- convolutions go slab by slab, so that the layout oneDNN works in is never kept for a whole tile; in 32 bits they go to
  oneDNN where torch would choose its own, slower one (one tile, up to 20480 values for each plane and channel);
- transposed convolutions whose kernel is their stride are one matrix product;
- instance normalization overwrites its input, where the network says that nothing else reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_SLAB = 2**24  # bytes of input; below two slabs, all at once is faster


class CpuInferenceKernels(TorchFunctionMode):
    """Context in which these operations are replaced; it changes nothing where gradients are computed.

    full: 32-bit numbers, no autocast. inplace_normalization: the trait of the network (`NetworkTraits`): nothing but the
    instance normalization reads its input, which may be overwritten. A block that normalizes first and adds its input at
    the end would compute something else.
    """

    def __init__(self, *, full: bool, inplace_normalization: bool = False) -> None:
        super().__init__()
        self.full = full and torch.backends.mkldnn.is_available()
        self.inplace_normalization = inplace_normalization

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            if func is F.conv3d and not kwargs and len(args) == 7 and isinstance(args[4], tuple):
                return self._convolve(*args)
            if func is F.conv_transpose3d and not kwargs and _is_one_product(*args):
                return _spread(args[0], args[1])
            if func is F.instance_norm and self._may_overwrite(*args, **kwargs):
                return _normalize_in_place(*args, **kwargs)
        return func(*args, **kwargs)

    def _may_overwrite(
        self, x: Tensor, running_mean: Tensor | None = None, running_var: Any = None, weight: Tensor | None = None, *_: Any,
        **__: Any,
    ) -> bool:  # fmt: skip
        """Return whether a large input may be normalized in place, without learned statistics or weights."""
        return self.inplace_normalization and _is_large(x.nbytes) and running_mean is None and weight is None

    def _convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        """Convolve slab by slab along the first axis where that keeps its length, else at once."""

        def convolve(part: Tensor) -> Tensor:
            if self.full and weight.shape[2] > 1 and part.dtype == torch.float32:
                return torch.mkldnn_convolution(part.contiguous(), weight, bias, padding, stride, dilation, groups)
            return F.conv3d(part, weight, bias, stride, padding, dilation, groups)

        size, count = x.nbytes, x.shape[2]
        # A slab gives as many planes as it has only for an odd kernel with half its edge as padding.
        same_length = weight.shape[2] == 2 * padding[0] + 1
        if not _is_large(size) or stride != (1, 1, 1) or dilation != (1, 1, 1) or not same_length:
            return convolve(x)
        rows, reach, result = max(1, count * _SLAB // size), padding[0], None
        for first in range(0, count, rows):
            end = min(count, first + rows)
            low = max(0, first - reach)  # a slab reads its neighbors' planes; at the tile's ends, padding
            part = convolve(x[:, :, low : min(count, end + reach)].contiguous())
            if result is None:
                result = part.new_empty((*part.shape[:2], count, *part.shape[3:]))
            result[:, :, first:end] = part[:, :, first - low : end - low]
            del part
        assert result is not None
        return result


def _is_large(size: int) -> bool:
    """Return whether so many bytes are worth a slab-wise computation."""
    return size >= 2 * _SLAB


def _is_one_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = (0,), output_padding: Any = (0,),
    groups: int = 1, dilation: Any = (1,),
) -> bool:  # fmt: skip
    """Return whether a transposed convolution spreads each voxel to a block of its own, and is large."""
    if bias is not None or groups != 1 or stride != tuple(weight.shape[2:]) or any(padding) or any(output_padding):
        return False
    return all(step == 1 for step in dilation) and _is_large(x.nbytes // x.shape[1] * weight[0].numel())


def _spread(x: Tensor, weight: Tensor) -> Tensor:
    """Return (B, K, pH, qW, rD) of x (B, C, H, W, D) and weight (C, K, p, q, r): each voxel becomes a block of its own."""
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


def _normalize_in_place(x: Tensor, *_: Any, eps: float = 1e-5, **__: Any) -> Tensor:
    """Normalize each channel of each tile to mean 0 and variance 1, in place, computed in 32 bits."""
    x = x.contiguous()
    for channel in x.view(x.shape[0] * x.shape[1], -1):
        values = channel.float()
        values.sub_(values.mean())
        values.mul_(torch.rsqrt(values.dot(values) / len(values) + eps))
        if values.dtype != channel.dtype:
            channel.copy_(values)
    return x

"""3D convolutions of training on the CPU in 32 bits, through the fastest kernel that torch offers for their shape.

    with CpuTrainingKernels():
        loss = criterion(network(image), classes)
    loss.backward()                                  # the gradients use these kernels too

In 32 bits torch sends most convolutions of a single crop to a kernel of its own, which computes them several times slower
than oneDNN. Its rule (`ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp) takes oneDNN for kernels of up to
3 x 3 x 3 only from two samples, or from 20,480 values of batch x channels x two edges, on. In addition, the AVX2 kernel of
oneDNN for the gradient of the weights does not pad along the first axis, and a much slower one takes its place. Here:

- the result, and the gradient of the input where the stride is 1, come from oneDNN called directly;
- the gradient of the weights is computed on two slabs of the crop, padded in memory and taken as a batch of two.

The choice depends on the shape and on what the processor can do, never on a timing, so that the same machine gives the same
model. `Testing/Benchmarks/results.md` has the times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_ONE = (1, 1, 1)
_MIN_PLANES = 5  # of the result along its shortest axis; below, torch's choice is faster
_MIN_CHANNELS = {"AVX2": 4, "AVX512": None}  # of inputs that torch gives to oneDNN; None: torch does as well
_TORCH_LIMIT = 20480  # values of batch x channels x two edges, up to which torch avoids oneDNN for a single sample


class CpuTrainingKernels(TorchFunctionMode):
    """Context in which 3D convolutions of 32-bit tensors on an x86 processor use the kernels of this module.

    Everything else is left as it is: other devices and processors, autocast, groups, dilation, a single input channel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.capability = torch.backends.cpu.get_cpu_capability() if torch.backends.mkldnn.is_available() else ""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv3d and len(args) == 7 and not kwargs and self._is_faster(*args):
            x, weight, bias, stride, padding = args[:5]
            return _Convolution.apply(x, weight, bias, stride, padding)
        return func(*args, **(kwargs or {}))

    def _is_faster(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> bool:
        """Return whether these kernels compute the convolution faster than torch's choice. Arguments: `F.conv3d`."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or x.ndim != 5:
            return False
        kernel = weight.shape[2:]
        if groups != 1 or dilation != _ONE or not isinstance(padding, tuple) or max(kernel) == 1:
            return False
        edges = zip(x.shape[2:], kernel, padding, stride)
        if min((size + 2 * pad - edge) // step + 1 for size, edge, pad, step in edges) < _MIN_PLANES:
            return False
        batch, channels, height, width = x.shape[:4]
        torch_takes_onednn = batch > 1 or batch * channels * height * width > _TORCH_LIMIT or min(kernel[1:]) > 3
        least = _MIN_CHANNELS.get(self.capability) if torch_takes_onednn else 2
        return self.capability in _MIN_CHANNELS and least is not None and channels >= least


class _Convolution(torch.autograd.Function):
    """Convolution without groups or dilation: x (B, C, H, W, D), weight (K, C, p, q, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, _ONE, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_input = of_weight = None
        if needs_input and ctx.stride == _ONE:
            of_input = _input_gradient(gradient, weight, ctx.padding)
            needs_input = False
        if needs_input or needs_weight:
            slabs = _slab_gradients(x, weight, gradient, ctx.stride, ctx.padding, (needs_input, needs_weight))
            of_input, of_weight = of_input if of_input is not None else slabs[0], slabs[1]
        return of_input, of_weight, gradient.sum((0, 2, 3, 4)) if needs_bias else None, None, None


def _input_gradient(gradient: Tensor, weight: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Return the gradient of the input of a convolution of stride 1: a convolution with the mirrored kernel."""
    reach = [edge - 1 - pad for edge, pad in zip(weight.shape[2:], padding)]
    mirrored = weight.flip(2, 3, 4).transpose(0, 1).contiguous()
    return torch.mkldnn_convolution(gradient, mirrored, None, reach, _ONE, _ONE, 1)


def _slab_gradients(
    x: Tensor, weight: Tensor, gradient: Tensor, stride: Any, padding: Any, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the input and of the weights, as far as they are wanted.

    A single sample is cut along the first axis into two slabs, which share the planes that both read. Planes of the
    padding are part of the slabs.
    """
    batch, count = gradient.shape[0], gradient.shape[2]
    rows = count if batch > 1 else -(-count // 2)  # planes of the gradient in a slab
    starts = [0] if batch > 1 else [0, count - rows]
    length = (rows - 1) * stride[0] + weight.shape[2]  # planes of the input that they read
    inputs = x.new_empty((len(starts) * batch, x.shape[1], length, *x.shape[3:]))
    gradients = gradient
    if len(starts) > 1:
        gradients = torch.cat([gradient[:, :, start : start + rows] for start in starts])
        gradients[batch:, :, : 2 * rows - count] = 0  # these planes are in the first slab too
    spans = [_span(start * stride[0] - padding[0], length, x.shape[2]) for start in starts]
    for part, (of_slab, of_input) in zip(inputs.split(batch), spans):
        part[:, :, : of_slab.start] = part[:, :, of_slab.stop :] = 0
        part[:, :, of_slab] = x[:, :, of_input]
    slabs, of_weight, _ = torch.ops.aten.convolution_backward(
        gradients, inputs, weight, None, stride, (0, *padding[1:]), _ONE, False, (0, 0, 0), 1, (*wanted, False)
    )
    if not wanted[0]:
        return None, of_weight
    result = torch.zeros_like(x)
    for part, (of_slab, of_input) in zip(slabs.split(batch), spans):
        result[:, :, of_input] += part[:, :, of_slab]
    return result, of_weight


def _span(first: int, length: int, count: int) -> tuple[slice, slice]:
    """Return which planes of a slab that starts at plane `first` of `count` planes exist, in the slab and in the input."""
    low, high = max(0, first), min(count, first + length)
    return slice(low - first, high - first), slice(low, high)

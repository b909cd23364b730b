"""The loss of networks that predict at several resolutions while they are trained (deep supervision)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from .losses import merge_unknown


def deep_supervision_loss(
    criterion: Callable[..., Tensor],
    logits: Tensor | Sequence[Tensor],
    classes: Tensor,
    *,
    done: float,
    unknown: Sequence[Sequence[int]] = (),
) -> Tensor:
    """Return the sum of the losses of all levels, level i with weight 2^-i; of a single tensor just its loss.

    Args:
        criterion: The loss of one level: (logits, classes, done=…) -> scalar.
        logits: (B, K, H, W, D), or a list of such tensors of decreasing size, finest first.
        classes: (B, 1, H, W, D) at the finest level; coarser levels see the nearest voxels.
        done: Share of the run that is over, 0 to 1.
        unknown: Classes that the case of each crop does not label (`losses.merge_unknown`).
    """
    if isinstance(logits, Tensor):
        return criterion(merge_unknown(logits.float(), unknown), classes, done=done)
    losses = []
    for level, coarse in enumerate(logits):
        merged = merge_unknown(coarse.float(), unknown)
        losses.append(0.5**level * criterion(merged, downsample_classes(classes, coarse.shape[2:]), done=done))
    return sum(losses[1:], losses[0])


def downsample_classes(classes: Tensor, size: Sequence[int]) -> Tensor:
    """Return classes (B, 1, H, W, D) at `size` voxels, nearest neighbor; the same tensor if that is their size."""
    if tuple(classes.shape[2:]) == tuple(size):
        return classes
    return F.interpolate(classes.float(), size=tuple(size), mode="nearest-exact").to(classes.dtype)

"""Exponential moving average of the weights during fine-tuning."""

from __future__ import annotations

from torch.optim.swa_utils import AveragedModel

from HiEndMAECore.networks import SegmentationNetwork

_FIRST_AVERAGED_STEP = 50  # before it the weights still change too much for an average to help


def update_average(averaged: AveragedModel, network: SegmentationNetwork, step: int) -> None:
    """Update the averaged weights after 0-based `step`; in the first 50 steps they are a copy of the network's."""
    if step < _FIRST_AVERAGED_STEP:
        averaged.n_averaged.zero_()
    averaged.update_parameters(network)

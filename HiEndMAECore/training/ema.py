"""The fine-tuning loop: one to a few labelled scans, held on the device, and a clock (paper section 4.1, ours in the rest).

No workers and no disk: every crop is cut out of the whole scan with its rotation, scaling and bend in one interpolation.
Step `i` draws from generators keyed by (seed, i), so that a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

from torch.optim.swa_utils import AveragedModel

from HiEndMAECore.networks import SegmentationNetwork


def update_average(averaged: AveragedModel, network: SegmentationNetwork, step: int) -> None:
    """Early steps are noise: until step 50 the average is the network itself."""
    if step < 50:
        averaged.n_averaged.zero_()
    averaged.update_parameters(network)

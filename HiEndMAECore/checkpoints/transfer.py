"""Compatibility: the names of this module have moved to `HiEndMAECore.models.pretrained`."""

from __future__ import annotations

from HiEndMAECore.models.pretrained import PretrainedWeights as InitialWeights
from HiEndMAECore.models.pretrained import load_encoder as transfer_encoder
from HiEndMAECore.models.pretrained import load_pretrained as start_from
from HiEndMAECore.models.pretrained import read_pretrained as read_initial
from HiEndMAECore.networks.transfer import inflate_input_weight as inflate

__all__ = ["InitialWeights", "inflate", "read_initial", "start_from", "transfer_encoder"]

"""Which network is trained, and from which weights: the options `--network`, `--variant` and `--init` together."""

from __future__ import annotations

from typing import Any

from HiEndMAECore.errors import InputError, UsageError
from HiEndMAECore.models.catalogue import DEFAULT_WEIGHTS
from HiEndMAECore.models.pretrained import PretrainedWeights, read_pretrained
from HiEndMAECore.networks.interface import SegmentationNetwork, fit_size, unfit_weights
from HiEndMAECore.networks.registry import (
    find_network,
    list_variants,
    network_class,
    network_config,
    network_of_variant,
    segmentation_architecture,
)
from HiEndMAECore.networks.variants import list_vit_variants
from HiEndMAECore.reporting.reporter import Reporter

from .plans import PRETRAINED_RATE


def choose_initial_weights(
    init: str | None, *, from_scratch: bool, network: str | None, variant: str | None, report: Reporter
) -> PretrainedWeights | None:
    """Read the weights to start from.

    Args:
        init: As of `--init` or `--improve`; None: the packaged weights where they suit the network, else none.
        from_scratch: Whether the preset starts from random weights by default.
        network: Option of the network; None: chosen by weights or preset.
        variant: Name of the variant; None: the network's default.
        report: Receives a sentence where the packaged weights do not suit the network.

    Raises:
        InputError: If the weights cannot be read, or cannot initialize the network.
    """
    initial = read_pretrained(str(init or ("none" if from_scratch else DEFAULT_WEIGHTS)))
    if initial is None or (network is None and variant is None):
        return initial
    wanted = find_network(network or network_of_variant(variant or "")).name
    if init is None:
        if initial.network == wanted and variant in (None, initial.variant):
            return initial
        report.info(f"The packaged weights are of {initial.network}: {wanted} starts from random weights.")
        return None
    if not network_class(wanted).can_start_from(initial):
        raise unfit_weights(network_class(wanted), initial)
    return initial


def choose_architecture(
    preset_variant: str,
    initial: PretrainedWeights | None,
    *,
    classes: int,
    channels: int,
    network: str | None = None,
    variant: str | None = None,
    vit_network: str | None = None,
) -> dict[str, Any]:
    """Return the architecture of the network to train, as `registry.segmentation_architecture` returns it.

    That of the segmentation model to start from, if there is one and the options do not ask for another; else the network
    and variant that the options name; else those of the starting weights' encoder; else the preset's variant.

    Args:
        preset_variant: ViT variant of the preset.
        initial: Weights to start from, or None.
        classes: Structures plus background.
        channels: Channels of the scans.
        network: Option of the network, or None.
        variant: Name of the variant, or None.
        vit_network: Network for a ViT variant if `network` is None, instead of the variant's own.

    Raises:
        InputError: If the starting weights are of an unknown variant.
        UsageError: If the network cannot be built; the message names the value.
    """
    wanted = find_network(network).name if network is not None else None
    same = initial is not None and wanted in (None, initial.network) and variant in (None, initial.variant)
    if initial is not None and initial.description is not None and initial.is_segmentation and same:
        known = dict(initial.description.architecture)
        return {**known, "arguments": {**known["arguments"], "classes": classes, "in_channels": channels}}
    if variant is None:
        variant = _default_variant(preset_variant, initial, wanted)
    if wanted is None and variant in list_vit_variants():
        wanted = vit_network
    try:
        architecture = segmentation_architecture(variant, classes=classes, in_channels=channels, network=wanted)
        config = network_config(architecture)
    except ValueError as error:
        if initial is not None and network is None:
            raise InputError("weights_unknown", f"The starting weights cannot be used: {error}.") from error
        raise UsageError("network_impossible", f"This network cannot be built: {error}.") from error
    size = fit_size(network_class(architecture["network"]), config, architecture["arguments"]["image_size"])
    return {**architecture, "arguments": {**architecture["arguments"], "image_size": size}}


def _default_variant(preset_variant: str, initial: PretrainedWeights | None, network: str | None) -> str:
    """Return the variant where none is named: of the starting weights, of the network, or of the preset."""
    if initial is not None:
        return initial.variant
    own = list_variants(network) if network is not None else list_variants()
    return preset_variant if preset_variant in own else own[0]


def choose_learning_rates(network: SegmentationNetwork, *, pretrained: bool) -> dict[str, float]:
    """Return the plan's base rates: those of the network for random weights; a pretrained encoder has a smaller one."""
    traits = network.traits
    rates = {"learning_rate": traits.learning_rate, "encoder_rate": traits.encoder_learning_rate}
    return {**rates, "encoder_rate": PRETRAINED_RATE} if pretrained else rates

"""Networks serve the pretraining objectives whose capabilities they have."""

from __future__ import annotations

import pytest
from network_builders import NETWORKS

from HiEndMAECore.errors import UsageError
from HiEndMAECore.networks import list_variants, registry
from HiEndMAECore.training.objectives.base import (
    ObjectiveRequest,
    build_objective,
    has_capability,
)


@pytest.mark.parametrize("name", [name for name in NETWORKS if registry.find_network(name).variants])
def test_objective_that_a_network_cannot_serve_is_named(name: str) -> None:
    variant = list_variants(name)[0]
    with pytest.raises(UsageError, match=f"--objective mae needs a ViT encoder; the network .*{variant}"):
        build_objective(ObjectiveRequest(objective="mae", variant=variant))


def test_capabilities_are_read_from_the_class() -> None:
    from HiEndMAECore.training.objectives.base import DenseForward, FeatureMaps, TokenEncoder

    unet, unetr = registry.network_class("unet"), registry.network_class("unetr")
    assert has_capability(unetr, TokenEncoder)
    assert not has_capability(unet, TokenEncoder)
    assert has_capability(unet, DenseForward)
    assert has_capability(unet, FeatureMaps)

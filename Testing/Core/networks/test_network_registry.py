"""The registry lists networks, variants and objectives without torch, and names what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from bare_python import run_bare

from HiEndMAECore.networks import list_networks, list_variants, registry, segmentation_architecture
from HiEndMAECore.networks.interface import NetworkConfig, SegmentationNetwork
from HiEndMAECore.networks.variants import get_variant, list_vit_variants
from HiEndMAECore.training.objectives import find_objective, list_objectives

NETWORKS = ("dynunet", "hybrid_unetr", "mednext", "segresnet", "swinunetr", "unet", "unetr")


def test_networks_and_variants_are_listed_without_torch() -> None:
    lines = (
        "from HiEndMAECore.networks import list_networks, list_variants",
        "from HiEndMAECore.training.objectives import list_objectives",
        "print(list_networks()); print(list_variants()); print(list_variants('unet')); print(list_objectives())",
    )
    result = run_bare("\n".join(lines))
    assert result.returncode == 0, result.stderr
    expected = (list_networks(), list_variants(), list_variants("unet"), list_objectives())
    assert result.stdout.splitlines() == [str(part) for part in expected]


def test_listed_networks_are_those_of_the_folder() -> None:
    assert set(NETWORKS) <= set(list_networks())
    assert list_variants()[:6] == list_vit_variants()
    assert {"unet_small", "dynunet_small", "segresnet_small", "swinunetr_small", "mednext_tiny"} <= set(list_variants())
    assert list_variants("unetr") == list_variants("hybrid_unetr") == list_vit_variants()
    assert list_variants("unet")[0] == "unet_small"


@pytest.mark.parametrize("name", NETWORKS)
def test_listed_text_agrees_with_the_imported_class(name: str) -> None:
    listed, network = registry.find_network(name), registry.network_class(name)
    assert network.registered_name == listed.name
    for variant, sizes in listed.variants.items():
        assert set(sizes) == {"title", "image_size", "network"}
        architecture = segmentation_architecture(variant, classes=3)
        config = registry.network_config(architecture)
        assert config.image_size == sizes["image_size"]
        assert {key: getattr(config, key) for key in sizes["network"]} == sizes["network"]


@pytest.mark.parametrize("spelling", ["hybrid_unetr", "HybridUNETR", "hybrid-unetr", "HYBRIDUNETR"])
def test_network_is_found_in_every_spelling(spelling: str) -> None:
    assert registry.find_network(spelling).option == "hybrid_unetr"


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ValueError, match="there is no network 'vnet'; known are dynunet, "):
        registry.find_network("vnet")
    with pytest.raises(ValueError, match="there is no network 'VNet'"):
        registry.build_network({"network": "VNet", "arguments": {}})
    with pytest.raises(ValueError, match="there is no variant 'unet_huge'; known are hi_end_mae_vit_base_16p, "):
        segmentation_architecture("unet_huge", classes=2)
    with pytest.raises(ValueError, match="not one of the network unet"):
        segmentation_architecture("hi_end_mae_vit_tiny_8p", classes=2, network="unet")
    with pytest.raises(ValueError, match=r"arguments of the network UNet are incomplete: .*'classes'"):
        registry.build_network({"network": "UNet", "arguments": {"image_size": (16, 16, 16)}})
    with pytest.raises(ValueError, match="there is no objective 'jigsaw'; known are hi-end-mae, inpainting, mae"):
        find_objective("jigsaw")


@pytest.mark.parametrize("variant", list_vit_variants())
def test_architecture_of_a_vit_variant_has_the_keys_of_format_1(variant: str) -> None:
    found = segmentation_architecture(variant, classes=4, in_channels=2)
    assert list(found) == ["network", "variant", "arguments"]
    assert found["network"] == get_variant(variant).segmentation
    assert list(found["arguments"]) == [
        "image_size", "patch_size", "in_channels", "classes", "encoder_dim", "encoder_depth", "encoder_heads",
        "feature_size",
    ]  # fmt: skip


def test_name_of_another_class_cannot_be_registered() -> None:
    @dataclass(frozen=True, kw_only=True)
    class OtherConfig(NetworkConfig):
        pass

    registry.network_class("unet")
    with pytest.raises(ValueError, match=r"'UNet' is registered already, by HiEndMAECore\.networks\.unet"):

        @registry.register_network("UNet", config=OtherConfig)
        class Other(SegmentationNetwork):
            pass


def test_registrations_are_read_from_text_alone() -> None:
    text = (
        '@registry.register_network("A", config=Config)\nclass A: ...\n'
        "@register_network(name, config=Config)\nclass B: ...\n"
        'class C: ...\n@register_network("D", config=Config, flag=True)\nclass D: ...\n'
    )
    assert registry.read_registrations(text, "register_network") == [("A", {}), ("D", {"flag": True})]


def test_objectives_say_what_they_start_from() -> None:
    assert list_objectives()[0] == "hi-end-mae"
    assert {name for name in list_objectives() if find_objective(name).needs_init} == {"inpainting"}
    assert find_objective("inpainting").frozen_encoder
    assert not find_objective("mae").frozen_encoder

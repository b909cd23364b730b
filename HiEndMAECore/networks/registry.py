"""Registered networks: listing without torch, building from an architecture.

A network registers itself with `register_network`. It is found in this folder, or in another package that names its
module under the entry point `hiendmae.networks`:

    [project.entry-points."hiendmae.networks"]
    res_unet = "my_package.res_unet"

Names and sizes are read from the source text with `ast`, so that commands list them on a bare Python; the module itself
is imported when a network is built. The option of a network (`--network`) is the name of its file or entry point, its
registered name stands in `model.json`.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from HiEndMAECore.errors import UsageError

from .variants import Variant, get_variant, list_vit_variants, pretraining_arguments, vit_architecture

if TYPE_CHECKING:
    from .hi_end_mae import HiEndMAE
    from .interface import NetworkConfig, SegmentationNetwork

    Network = TypeVar("Network", bound=type[SegmentationNetwork])

ENTRY_POINT_GROUP = "hiendmae.networks"
_FOLDER = Path(__file__).parent
_CLASSES: dict[str, type[SegmentationNetwork]] = {}  # of imported modules, by registered name


@dataclass(frozen=True)
class RegisteredNetwork:
    """A network as its source text describes it.

    name: registered name, as in `model.json`. option: name for `--network`. module: to import. variants: the literal
    `VARIANTS`, default first; empty for networks whose sizes are those of the ViT variants.
    """

    name: str
    option: str
    module: str
    variants: Mapping[str, Mapping[str, Any]]


def register_network(name: str, *, config: type[NetworkConfig]) -> Callable[[Network], Network]:
    """Return a class decorator that registers a network.

    Args:
        name: Registered name, which stands in `model.json`: a string literal, because it is read without importing.
        config: Frozen dataclass of the constructor arguments.

    Raises:
        ValueError: If another class has the name already.
    """

    def register(network: Network) -> Network:
        known = _CLASSES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (network.__module__, network.__qualname__):
            raise ValueError(f"the network name {name!r} is registered already, by {known.__module__}")
        network.registered_name, network.Config = name, config
        _CLASSES[name] = network
        return network

    return register


# -- listing, without torch ----------------------------------------------------------------------------------------------


def list_networks() -> tuple[str, ...]:
    """Return the names that `--network` takes."""
    return tuple(network.option for network in _registered())


def find_network(name: str) -> RegisteredNetwork:
    """Return the network with this option or registered name; case, `-` and `_` make no difference.

    Raises:
        ValueError: If there is none; the message lists the known ones.
    """
    for network in _registered():
        if _plain(name) in (_plain(network.option), _plain(network.name)):
            return network
    raise ValueError(f"there is no network {name!r}; known are {', '.join(list_networks())}")


def list_variants(network: str | None = None) -> tuple[str, ...]:
    """Return the names of all variants, or those of one network, default first.

    The ViT variants suit every network that has none of its own (UNETR and HybridUNETR).

    Raises:
        ValueError: If there is no such network.
    """
    if network is not None:
        return tuple(find_network(network).variants) or list_vit_variants()
    own = [name for registered in _registered() for name in registered.variants]
    return (*list_vit_variants(), *own)


def network_of_variant(variant: str) -> str:
    """Return the registered name of the network that a variant belongs to.

    Raises:
        ValueError: If there is no such variant; the message lists the known ones.
    """
    if variant in list_vit_variants():
        return get_variant(variant).segmentation
    for network in _registered():
        if variant in network.variants:
            return network.name
    raise ValueError(f"there is no variant {variant!r}; known are {', '.join(list_variants())}")


def read_registrations(text: str, decorator: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, literal keyword arguments) of every class in the source `text` under `@decorator("name", …)`."""
    if f"{decorator}(" not in text:
        return []
    found = []
    for node in ast.parse(text).body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            called = getattr(call, "func", None)
            if not isinstance(call, ast.Call) or decorator not in (
                getattr(called, "id", None),
                getattr(called, "attr", None),
            ):
                continue
            if call.args and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str):
                literals = {k.arg: k.value.value for k in call.keywords if k.arg and isinstance(k.value, ast.Constant)}
                found.append((call.args[0].value, literals))
    return found


def _registered() -> tuple[RegisteredNetwork, ...]:
    """Return all networks: those of this folder, then those of other packages."""
    return (*_own_networks(), *_other_networks(tuple(sys.path)))


@lru_cache(maxsize=1)
def _own_networks() -> tuple[RegisteredNetwork, ...]:
    package = __name__.rpartition(".")[0]
    found = [_read_network(file, f"{package}.{file.stem}", file.stem) for file in sorted(_FOLDER.glob("*.py"))]
    return tuple(network for network in found if network is not None)


@lru_cache(maxsize=4)
def _other_networks(search_path: tuple[str, ...]) -> tuple[RegisteredNetwork, ...]:
    """Return the networks of other packages; one that cannot be read is no network, and does not stop a command."""
    found: dict[str, RegisteredNetwork] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        module = entry.value.partition(":")[0].strip()
        file = _file_of_module(module)
        network = _read_network(file, module, entry.name) if file else None
        if network is not None and network.name not in {own.name for own in _own_networks()}:
            found.setdefault(network.name, network)
    return tuple(found.values())


def _file_of_module(module: str) -> Path | None:
    """Return the source file of a module without importing its package, which may need torch."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None


def _read_network(file: Path, module: str, option: str) -> RegisteredNetwork | None:
    """Return the network that `file` registers, or None if it registers none or cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
        names = read_registrations(text, "register_network")
        if not names:
            return None
        variants: dict[str, Any] = {}
        for node in ast.parse(text).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(getattr(target, "id", None) == "VARIANTS" for target in targets):
                variants = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    except (OSError, SyntaxError, ValueError):
        return None
    return RegisteredNetwork(names[0][0], option, module, variants)


def _plain(name: str) -> str:
    """Return a name without case, `-` and `_`, for comparison."""
    return name.lower().replace("-", "").replace("_", "")


def check_network_options(network: str | None, variant: str | None) -> None:
    """Check `--network` and `--variant` against the registry, without torch.

    Raises:
        UsageError: If one of them is unknown, or the variant is not one of the network.
    """
    try:
        chosen = find_network(network) if network is not None else None
        of_variant = network_of_variant(variant) if variant is not None else None
    except ValueError as error:
        message = str(error)
        raise UsageError("choice_unknown", f"{message[0].upper()}{message[1:]}.", "Choose a known name.") from error
    if chosen is not None and variant is not None and variant not in list_variants(chosen.option):
        raise UsageError(
            "variant_of_another_network",
            f"--variant {variant} is a size of the network {of_variant}, not of {chosen.option}.",
            f"Use one of: {', '.join(list_variants(chosen.option))}.",
        )


# -- building ------------------------------------------------------------------------------------------------------------


def network_class(name: str) -> type[SegmentationNetwork]:
    """Return the class of a network by its option or registered name; imports its module.

    Raises:
        ValueError: If there is no such network.
    """
    if name in _CLASSES:  # also a network that was registered by hand
        return _CLASSES[name]
    network = find_network(name)
    importlib.import_module(network.module)
    return _CLASSES[network.name]


def network_config(architecture: Mapping[str, Any]) -> NetworkConfig:
    """Return the configuration that an architecture describes.

    Args:
        architecture: {"network": registered name, "variant": name, "arguments": {…}}, as in `model.json`.

    Raises:
        ValueError: If the network is unknown, or an argument is unknown, missing or unsuitable; the message names it.
    """
    config, arguments = network_class(architecture["network"]).Config, dict(architecture["arguments"])
    known = {item.name for item in fields(config)}
    if unknown := sorted(set(arguments) - known):
        name = architecture["network"]
        raise ValueError(f"the network {name} has no argument {unknown[0]!r}; known are {', '.join(sorted(known))}")
    try:
        return config(**arguments)
    except TypeError as error:
        raise ValueError(f"the arguments of the network {architecture['network']} are incomplete: {error}") from error


def build_network(architecture: Mapping[str, Any]) -> SegmentationNetwork:
    """Build the network of an architecture, as `segmentation_architecture` returns and `model.json` holds it.

    Raises:
        ValueError: If the network cannot be built; the message names the bad value.
        MissingDependencyError: If the network needs a package that is not installed.
    """
    from .interface import require_allowed_size

    network, config = network_class(architecture["network"]), network_config(architecture)
    require_allowed_size(network, config)
    return network.build(config)


def segmentation_architecture(
    variant: str | Variant,
    *,
    classes: int,
    in_channels: int = 1,
    image_size: Sequence[int] | None = None,
    network: str | None = None,
) -> dict[str, Any]:
    """Return the segmentation network of a variant as plain values: {"network", "variant", "arguments"}.

    Args:
        variant: Name of any variant.
        classes: Structures plus background.
        in_channels: Channels of the image.
        image_size: Crop and tile in voxels; None: the variant's.
        network: For a ViT variant, the network to use instead of the variant's own (option or registered name).

    Raises:
        ValueError: If there is no such variant, or it is not one of `network`.
    """
    if isinstance(variant, Variant) or variant in list_vit_variants():
        sizes = variant if isinstance(variant, Variant) else get_variant(variant)
        if network is not None:
            registered = find_network(network)
            if registered.variants:
                raise ValueError(f"the variant {sizes.name!r} is not one of the network {registered.option}")
            sizes = replace(sizes, segmentation=registered.name)
        return vit_architecture(sizes, classes=classes, in_channels=in_channels, image_size=image_size)
    registered = find_network(network_of_variant(variant))
    if network is not None and find_network(network) != registered:
        raise ValueError(f"the variant {variant!r} is not one of the network {find_network(network).option}")
    own = registered.variants[variant]
    given = {"image_size": tuple(image_size or own["image_size"]), "in_channels": in_channels, "classes": classes}
    arguments = {**own.get("network", {}), **given}
    config = network_config({"network": registered.name, "arguments": arguments})
    return {"network": registered.name, "variant": variant, "arguments": asdict(config)}


def build_pretraining_model(variant: str | Variant, **options: Any) -> HiEndMAE:
    """Build the masked autoencoder of a ViT variant.

    Args:
        variant: Name of a ViT variant, or its sizes.
        **options: As of `variants.pretraining_arguments`.

    Raises:
        ValueError: If there is no such variant, or an option does not suit it.
    """
    from .hi_end_mae import HiEndMAE

    return HiEndMAE(**pretraining_arguments(variant, **options))

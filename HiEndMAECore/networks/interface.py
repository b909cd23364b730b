"""The interface that every segmentation network implements, and what the engine asks of it.

A network is one file: a frozen configuration, a class, and the literal `VARIANTS`, which `registry` lists without
importing torch. Training, inference and the model folder know a network only through this interface.

    VARIANTS = {"res_unet_small": {"title": "Residual U-Net", "image_size": (64, 64, 64), "network": {"width": 24}}}

    @dataclass(frozen=True, kw_only=True)
    class ResUNetConfig(NetworkConfig):
        width: int = 24

    @register_network("ResUNet", config=ResUNetConfig)
    class ResUNet(SegmentationNetwork):
        traits = NetworkTraits(input_layers=("encoder.0",), head="head", pretrained_part="encoder")

        def __init__(self, config: ResUNetConfig) -> None:
            super().__init__(config)
            ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from HiEndMAECore.errors import InputError
from HiEndMAECore.runtime.memory import Cost

from .transfer import (
    Drop,
    Inflate,
    LoadReport,
    PretrainedState,
    Recompute,
    Rename,
    Reset,
    TransferRule,
    check_fit,
    is_under,
)

__all__ = [
    "Cost",
    "Drop",
    "Inflate",
    "LayerGroup",
    "LoadReport",
    "NetworkConfig",
    "NetworkTraits",
    "PretrainedState",
    "Recompute",
    "Rename",
    "Reset",
    "SegmentationNetwork",
    "TransferRule",
    "fit_size",
    "group_by_depth",
    "require_allowed_size",
]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The constructor arguments of a network; subclasses add their own. `architecture.arguments` of `model.json`.

    in_channels: channels of the image. classes: structures plus background. image_size: crop and tile in voxels, one
    edge for each spatial dimension. spatial_dims: 2 or 3.
    """

    in_channels: int = 1
    classes: int
    image_size: tuple[int, ...]
    spatial_dims: int = 3

    def __post_init__(self) -> None:
        for item in fields(self):  # JSON has lists
            value = getattr(self, item.name)
            if isinstance(value, list):
                object.__setattr__(self, item.name, tuple(value))
        for name in ("in_channels", "classes"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number of 1 or more")
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {self.spatial_dims!r}; it must be 2 or 3")
        size = self.image_size
        whole = isinstance(size, tuple) and all(isinstance(edge, int) and edge > 0 for edge in size)
        if not whole or len(size) != self.spatial_dims:
            raise ValueError(f"image_size is {size!r}; it must be {self.spatial_dims} whole numbers above 0")


@dataclass(frozen=True, kw_only=True)
class NetworkTraits:
    """Properties of a network class that the engine must know.

    spatial_dims: the dimensions that the network can be built for.
    deep_supervision: in training mode `forward` may return a list of logits, finest first.
    inplace_normalization: nothing but the instance normalization reads its input, so that the CPU kernels may overwrite
        it. False for blocks that normalize first and keep their input for a residual connection.
    input_layers: prefixes of the layers that read the image; their weights are inflated for more channels.
    head: prefix or prefixes of the layers whose shape depends on the number of classes.
    pretrained_part: prefix of the encoder, which networks of one kind share; "" for no such part.
    learning_rate, encoder_learning_rate: base rates of AdamW for training from random weights.
    """

    spatial_dims: tuple[int, ...] = (3,)
    deep_supervision: bool = False
    inplace_normalization: bool = False
    input_layers: tuple[str, ...] = ()
    head: str | tuple[str, ...] = "head"
    pretrained_part: str = ""
    learning_rate: float = 1e-3
    encoder_learning_rate: float = 1e-3


@dataclass(frozen=True)
class LayerGroup:
    """Parameters that are trained at one rate.

    name: for messages. parameters: in the order of `nn.Module.parameters`. depth: number of groups between these
    parameters and the end of the encoder, 0 for its deepest stage; the layer-wise rate is base x decay^depth. is_encoder:
    the encoder has a base rate of its own, and can be frozen.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    depth: int = 0
    is_encoder: bool = False


class SegmentationNetwork(nn.Module):
    """Base class of segmentation networks: image (B, C, H, W, D) -> logits (B, classes, H, W, D).

    Subclasses implement `forward`, set `traits`, and override what differs from the defaults below. `Config` and
    `registered_name` are set by `registry.register_network`. A class is made for configurations, so the size rules take
    a configuration and need no built network.
    """

    Config: ClassVar[type[NetworkConfig]] = NetworkConfig
    registered_name: ClassVar[str] = ""
    traits: ClassVar[NetworkTraits] = NetworkTraits()

    def __init__(self, config: NetworkConfig) -> None:
        """Keep the configuration.

        Raises:
            ValueError: If the class cannot be built for the configuration's spatial dimensions.
        """
        super().__init__()
        if config.spatial_dims not in self.traits.spatial_dims:
            allowed = " or ".join(map(str, self.traits.spatial_dims))
            raise ValueError(f"spatial_dims is {config.spatial_dims}; {type(self).__name__} needs {allowed}")
        self.config = config

    @classmethod
    def build(cls, config: NetworkConfig) -> SegmentationNetwork:
        """Build the network of `config`.

        Raises:
            ValueError: If a value of `config` does not suit the network; the message names it.
        """
        return cls(config)

    @property
    def classes(self) -> int:
        """The number of structures plus background."""
        return self.config.classes

    # -- sizes ---------------------------------------------------------------------------------------------------

    @staticmethod
    def size_divisor(config: Any) -> tuple[int, ...]:
        """Return the divisor of the image size along each axis, in voxels."""
        return (1,) * config.spatial_dims

    @classmethod
    def min_size(cls, config: Any) -> tuple[int, ...]:
        """Return the smallest allowed edges in voxels; the divisor by default."""
        return cls.size_divisor(config)

    @classmethod
    def smallest_feature_edge(cls, config: Any, size: Sequence[int]) -> int:
        """Return the shortest edge of the coarsest feature map for an image of `size`; autocast is off below 3."""
        return min(edge // divisor for edge, divisor in zip(size, cls.size_divisor(config)))

    @classmethod
    def estimate(cls, config: Any, size: Sequence[int], batch: int, training: bool) -> Cost | None:
        """Return the cost of a forward pass, or of a training step, where it is known; None: it is measured."""
        return None

    # -- computation ---------------------------------------------------------------------------------------------

    def features(self, image: Tensor) -> list[Tensor]:
        """Return the encoder's feature maps (B, C_i, H_i, W_i, D_i), finest first."""
        raise NotImplementedError(f"{type(self).__name__} does not return feature maps")

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits (B, classes, H, W, D).

        In training mode, a network with the trait `deep_supervision` may return a list of logits, finest first, whose
        level i counts with weight 2^-i in the loss.
        """
        raise NotImplementedError

    # -- weights -------------------------------------------------------------------------------------------------

    def encoder_state(self) -> dict[str, Tensor]:
        """Return the weights that networks with the same encoder share, under their names in `state_dict`."""
        return {name: value for name, value in self.state_dict().items() if is_under(name, self.traits.pretrained_part)}

    @classmethod
    def can_start_from(cls, source: PretrainedState) -> bool:
        """Return whether the network can be initialized from `source`; by default from weights of the same network."""
        return source.network == cls.registered_name

    def transfer_rules(self, source: PretrainedState) -> list[TransferRule]:
        """Return how the weights of `source` are adapted, in order.

        Input layers are inflated. The head keeps its own weights if its shape differs, and always if `source` was not
        trained to segment.
        """
        return [Inflate(self.traits.input_layers), Reset(self.traits.head, always=not source.is_segmentation)]

    def load_pretrained(self, source: PretrainedState, *, encoder_only: bool = False) -> LoadReport:
        """Initialize from pretrained weights: the whole network from the same network, else the encoder alone.

        Args:
            source: The weights and the name of their network.
            encoder_only: Load the encoder alone from the same network, too.

        Returns:
            What was loaded, inflated, reset and dropped.

        Raises:
            InputError: If the weights are of a network that this one cannot start from, or do not fit after the
                transfer rules were applied; every other key must fit exactly.
        """
        if not self.can_start_from(source):
            raise unfit_weights(type(self), source)
        whole = source.network == self.registered_name and not encoder_only
        report = LoadReport("network" if whole else "encoder")
        rules = self.transfer_rules(source)
        state = {name: value.float() for name, value in source.state.items()}
        for rule in rules:
            if isinstance(rule, Rename):
                rule.apply(state, {}, report)
        own = self.state_dict()
        expected = own if whole else {n: v for n, v in own.items() if is_under(n, self.traits.pretrained_part)}
        if not whole:
            state = {name: value for name, value in state.items() if is_under(name, self.traits.pretrained_part)}
        for rule in rules:
            if not isinstance(rule, Rename):
                rule.apply(state, expected, report)
        kind = "segmentation weights" if source.is_segmentation else "pretrained weights"
        check_fit(expected, state, what=kind if whole else "encoder weights")
        self.load_state_dict({**own, **state})
        report.loaded = sorted(set(state) - set(report.reset))
        return report

    # -- parameter groups ----------------------------------------------------------------------------------------

    def layer_groups(self) -> list[LayerGroup]:
        """Return groups that hold each parameter exactly once, by default the encoder (`pretrained_part`) and the rest."""
        part = self.traits.pretrained_part
        encoder = tuple(value for name, value in self.named_parameters() if is_under(name, part))
        rest = tuple(value for name, value in self.named_parameters() if not is_under(name, part))
        groups = [LayerGroup("encoder", encoder, is_encoder=True), LayerGroup("rest", rest)]
        return [group for group in groups if group.parameters]


def group_by_depth(
    stages: Iterable[nn.Module | Sequence[nn.Module]], *, head: nn.Module | Sequence[nn.Module] | None = None
) -> list[LayerGroup]:
    """Return one layer group for each stage of an encoder, and one for the rest.

    Args:
        stages: The stages of the encoder from the input to the deepest; the last one has depth 0.
        head: Everything after the encoder: decoder and output layers.
    """
    listed = [tuple(_parameters(stage)) for stage in stages]
    groups = [
        LayerGroup(f"encoder stage {index}", parameters, len(listed) - 1 - index, is_encoder=True)
        for index, parameters in enumerate(listed)
    ]
    rest = tuple(_parameters(head)) if head is not None else ()
    return [group for group in [*groups, LayerGroup("rest", rest)] if group.parameters]


def _parameters(modules: nn.Module | Sequence[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the parameters of one module or of several."""
    for module in (modules,) if isinstance(modules, nn.Module) else modules:
        yield from module.parameters()


def fit_size(network: type[SegmentationNetwork], config: Any, size: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest allowed image size (voxels) that is at least `size` along every axis."""
    edges = zip(size, network.size_divisor(config), network.min_size(config))
    return tuple(-(-max(int(edge), least) // divisor) * divisor for edge, divisor, least in edges)


def require_allowed_size(network: type[SegmentationNetwork], config: Any) -> None:
    """Check `config.image_size` against the size rules of `network`.

    Raises:
        ValueError: If an edge is not a multiple of the divisor, or too short; the message names both.
    """
    size, divisor, least = config.image_size, network.size_divisor(config), network.min_size(config)
    if any(edge % part for edge, part in zip(size, divisor)):
        raise ValueError(f"an image size of {tuple(size)} voxels is not divisible by {divisor}")
    if any(edge < shortest for edge, shortest in zip(size, least)):
        raise ValueError(f"an image size of {tuple(size)} voxels is too small: the network needs {least} or more")


def unfit_weights(network: type[SegmentationNetwork], source: PretrainedState) -> InputError:
    """Return the error for weights that `network` cannot start from."""
    of = f"of the network {source.network}" if source.network else "of a ViT encoder"
    return InputError(
        "weights_of_another_network",
        f"The weights '{source.source}' are {of} and cannot initialize the network {network.registered_name}.",
        f"Use --init none to train from random weights, or give a model of the network {network.registered_name}.",
    )

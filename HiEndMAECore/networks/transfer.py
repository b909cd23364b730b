"""Rules by which pretrained weights are adapted to a network, and strict loading.

Rules change a state dict in order; what they leave must fit the network key by key. A network lists its rules in
`SegmentationNetwork.transfer_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from HiEndMAECore.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_MOST_NAMES = 6  # in an error message


class PretrainedState(Protocol):
    """Weights to start from, as `transfer_rules` sees them (`models.pretrained.PretrainedWeights`).

    source: for messages. network: registered name, "HiEndMAE", or "" if unknown. state: the whole state dict.
    is_segmentation: whether the weights were trained to segment.
    """

    @property
    def source(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def state(self) -> Mapping[str, Tensor]: ...
    @property
    def is_segmentation(self) -> bool: ...


@dataclass
class LoadReport:
    """What loading pretrained weights did.

    part: "network" or "encoder". loaded, inflated, reset, dropped: names of tensors; those of `inflated` are in `loaded`
    as well, `reset` names layers that keep their random weights.
    """

    part: str
    loaded: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


class TransferRule(Protocol):
    """One change of a state dict. `own`: the tensors of the network that are being filled."""

    def apply(self, state: dict[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> None: ...


@dataclass(frozen=True)
class Rename:
    """Replace the prefix `old` of names by `new`."""

    old: str
    new: str

    def apply(self, state: dict[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> None:
        for name in [name for name in state if name.startswith(self.old)]:
            state[self.new + name.removeprefix(self.old)] = state.pop(name)


@dataclass(frozen=True)
class Inflate:
    """Copy the weights of input layers to more channels, divided by their number; equal channels give the old result."""

    layers: tuple[str, ...]

    def apply(self, state: dict[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> None:
        for name, weight in state.items():
            if (
                any(is_under(name, layer) for layer in self.layers)
                and name in own
                and weight.ndim == own[name].ndim >= 4
            ):
                if weight.shape[1] != own[name].shape[1]:
                    report.inflated.append(name)
                state[name] = inflate_input_weight(weight, own[name].shape[1])


@dataclass(frozen=True)
class Reset:
    """Keep the network's own weights of the layers `head`, if the shapes differ, or `always`."""

    head: str | tuple[str, ...]
    always: bool = False

    def apply(self, state: dict[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> None:
        heads = (self.head,) if isinstance(self.head, str) else self.head
        for name, value in own.items():
            if not any(is_under(name, head) for head in heads):
                continue
            if self.always or name not in state or state[name].shape != value.shape:
                state[name] = value
                report.reset.append(name)


@dataclass(frozen=True)
class Recompute:
    """Discard stored tensors that the network computes for its own grid, such as position embeddings."""

    names: tuple[str, ...]

    def apply(self, state: dict[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> None:
        report.dropped.extend(name for name in self.names if state.pop(name, None) is not None)


@dataclass(frozen=True)
class Drop:
    """Discard tensors that the network does not have, such as the cls token."""

    names: tuple[str, ...]

    def apply(self, state: dict[str, Tensor], own: Mapping[str, Tensor], report: LoadReport) -> None:
        report.dropped.extend(name for name in self.names if state.pop(name, None) is not None)


def is_under(name: str, prefix: str) -> bool:
    """Return whether the tensor or module `name` is `prefix` or inside it; nothing is inside ""."""
    return bool(prefix) and (name == prefix or name.startswith(prefix + "."))


def inflate_input_weight(weight: Tensor, channels: int) -> Tensor:
    """Return the weight of an input layer for more channels: copied, divided by their number.

    Args:
        weight: Patch embedding or convolution (dim, C, p, p, p) that reads the image.
        channels: The new C. Equal channels then give the old result.

    Raises:
        InputError: If the weight has several channels, and another number than `channels`.
    """
    known = weight.shape[1]
    if known == channels:
        return weight
    if known != 1:
        raise InputError(
            "channels_do_not_fit",
            f"The weights were trained on {known} channels, the scans have {channels}.",
            "Use weights of one channel, or of the same number.",
        )
    return weight.expand(-1, channels, *[-1] * (weight.ndim - 2)) / channels


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], *, what: str) -> None:
    """Check that `state` has exactly the names and shapes of `expected`.

    Args:
        expected: The tensors of the network.
        state: The tensors to load.
        what: For the message, such as "encoder weights".

    Raises:
        InputError: If names or shapes differ; the message lists them.
    """
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    wrong = [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or unknown or wrong:
        parts = [f"{title}: {_first_names(names)}" for title, names in
                 (("missing", missing), ("unknown", unknown), ("of another shape", wrong)) if names]  # fmt: skip
        raise InputError(
            "weights_do_not_fit",
            f"These {what} do not fit the network; {'; '.join(parts)}.",
            "Choose matching weights.",
        )


def load_strict(model: Any, state: Mapping[str, Tensor], *, what: str) -> None:
    """Load `state` into `model`.

    Raises:
        InputError: If names or shapes differ, see `check_fit`.
    """
    check_fit(model.state_dict(), state, what=what)
    model.load_state_dict(state)


def _first_names(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")

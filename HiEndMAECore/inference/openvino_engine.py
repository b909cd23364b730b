"""OpenVINO as an engine: a network whose tiles OpenVINO computes on the CPU. The package is optional.

    network = OpenVINONetwork(network, architecture, tile=(1, 48, 48, 48), precision="bf16")
    network.start()                                   # reads the converted network from the cache, or converts it
    logits = forward(network, tiles, exact=False)     # as with the network itself

Any fault raises `EngineFailure`; the predictor then computes the whole scan with torch.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from HiEndMAECore import __version__
from HiEndMAECore.errors import MissingDependencyError, UsageError
from HiEndMAECore.networks.interface import NetworkTraits
from HiEndMAECore.runtime.devices import cpu_has_bf16

from .engine_cache import find_network, store_network

_FORMAT = 1  # of the cache: another number after a change of the conversion
_TOLERANCE = 0.1  # of the root mean square of the logits; bf16 stays below 0.02


class EngineFailure(Exception):
    """OpenVINO could not convert, compile or compute a network."""


def choose_engine(name: str, network: nn.Module, device: torch.device, *, exact: bool) -> str:
    """Return the engine that computes a network, "torch" or "openvino".

    With "auto", it is OpenVINO if that is installed and the CPU computes in bf16.

    Raises:
        MissingDependencyError: OpenVINO is asked for and not installed.
        UsageError: OpenVINO is asked for, and the device is not the CPU.
    """
    if name == "torch" or (name == "auto" and (device.type != "cpu" or exact or not cpu_has_bf16())):
        return "torch"
    if find_spec("openvino") is None:
        if name == "auto":
            return "torch"
        raise MissingDependencyError.of("openvino", "for --engine openvino")
    if device.type != "cpu":
        raise UsageError("usage", f"OpenVINO computes on the CPU here, not on {device}.", "Add --device cpu.")
    # OpenVINO 2026.4 ended the process with a segmentation fault there.
    crashes = type(network).__name__ == "MedNeXt" and not cpu_has_bf16()
    return "torch" if crashes else "openvino"


class OpenVINONetwork(nn.Module):
    """A network that OpenVINO computes, tile by tile, with the traits of the network in torch.

    Args:
        network: The network in torch, in evaluation mode; it is not changed.
        architecture: Its architecture, as in model.json.
        tile: Shape (C, H, W, D) of a tile.
        precision: "bf16" or "f32".
    """

    def __init__(
        self, network: nn.Module, architecture: Mapping[str, Any], *, tile: Sequence[int], precision: str
    ) -> None:
        super().__init__()
        self.network, self.traits = network, getattr(network, "traits", NetworkTraits())
        self.architecture, self.tile, self.precision = architecture, tuple(tile), precision
        self._request: Any = None

    def start(self) -> None:
        """Read the network from the cache or convert it, and compile it for torch's number of threads, once.

        Raises:
            EngineFailure: OpenVINO cannot be imported, or does not convert or compile the network.
        """
        if self._request is None:
            with _faults_as_engine_failure():
                self._request = self._compile()

    def forward(self, tiles: Tensor) -> Tensor:
        """Return the logits (B, classes, H, W, D), float32, of tiles (B, C, H, W, D), after `start`.

        Raises:
            EngineFailure: OpenVINO does not compute the tiles.
        """
        with _faults_as_engine_failure():
            return torch.cat([_compute(self._request, tile) for tile in tiles.split(1)])

    def _compile(self) -> Any:
        """Return a request that computes one tile."""
        openvino = _import_openvino()
        core, key = openvino.Core(), self._key(openvino.__version__)
        config = {"INFERENCE_PRECISION_HINT": self.precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        config |= {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}  # pinned, several processes would share one core
        if path := find_network(key):
            return core.compile_model(core.read_model(path), "CPU", config).create_infer_request()
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            network = copy.deepcopy(self.network).float()  # its weights may be stored in bf16
            example = torch.rand((1, *self.tile), generator=torch.Generator().manual_seed(0))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # sizes become constants, as they shall
                model = openvino.convert_model(network, example_input=example, input=[list(example.shape)])
            request = core.compile_model(model, "CPU", config).create_infer_request()
            expected, found = network(example), _compute(request, example)
        if not (found - expected).square().mean().sqrt() <= _TOLERANCE * expected.square().mean().sqrt():
            raise ValueError("the logits of the converted network differ from torch's")
        store_network(key, lambda file: openvino.save_model(model, file, compress_to_fp16=False))
        return request

    def _key(self, version: str) -> str:
        """Return a digest of everything that decides the converted network."""
        parts = [_FORMAT, __version__, version, torch.__version__, self.precision, self.tile, self.architecture]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def _compute(request: Any, tile: Tensor) -> Tensor:
    """Return the logits (1, classes, H, W, D) of one tile (1, C, H, W, D)."""
    return torch.from_numpy(request.infer([tile.float().contiguous().numpy()])[0])


@contextlib.contextmanager
def _faults_as_engine_failure() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EngineFailure(f"{type(error).__name__}: {error}") from error


def _import_openvino() -> Any:
    """Return the module openvino, without the package by which it would send data on its use to its maker."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino

"""The quantization tools of others, as `edged compare` measures them: each by name, if it is installed."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from edged.calibration.dataset import ImageCache
from edged.comparators.peers import aimet, brevitas, onnx_tools
from edged.errors import UnavailableError, UsageError
from edged.execution.executors import OnnxExecutor
from edged.execution.onnx_model import onnx_model
from edged.execution.processor import processor_saturates
from edged.models.architecture import Architecture
from edged.pipeline.engine import EngineNetwork
from edged.spelling import names_to_choose

EXTRA = "pip install 'edged[bench]'"
MAX_PIXELS = 32 * 640**2  # for quantize_static, which keeps the activations of all images in memory


class Peer(Protocol):
    """A tool of others.

    Attributes:
        package: Package that has to be installed, as Python imports it.
        distributions: Names of the packages, as pip knows them, whose versions decide what is measured.
        install: Command that installs them.
        activation_bits: Bits of activations; None where these stay in float.
        iterations: Optimization steps of each layer; 0 if there are none.
    """

    @property
    def package(self) -> str:
        """Return the package."""

    @property
    def distributions(self) -> tuple[str, ...]:
        """Return the names that pip knows."""

    @property
    def install(self) -> str:
        """Return the command."""

    @property
    def iterations(self) -> int:
        """Return the number of steps."""

    @property
    def activation_bits(self) -> int | None:
        """Return the bits of activations."""

    def prepare(self) -> None:
        """Import what the tool needs, so that the time and memory of this are not measured."""

    def quantize(self, model: nn.Module, architecture: Architecture, cache: ImageCache) -> nn.Module:
        """Return the quantized network, in eval mode, on the CPU.

        Args:
            model: Network in full precision, on the CPU. Not modified.
            architecture: Its architecture.
            cache: Images; the calibration images are used.
        """


@dataclass(frozen=True)
class WeightTool:
    """Brevitas' GPTQ or Qronos: weights at any number of bits.

    Attributes:
        name: One of `edged.comparators.peers.brevitas.PEERS`.
        bits: Bits per weight.
        batch_size: Images per step.
    """

    name: str
    bits: int
    batch_size: int
    package: str = "brevitas"
    distributions: tuple[str, ...] = ("brevitas",)
    install: str = EXTRA
    activation_bits: int | None = None
    iterations: int = 0

    def prepare(self) -> None:
        """Import the modules of Brevitas."""
        brevitas.prepare()

    def quantize(self, model: nn.Module, architecture: Architecture, cache: ImageCache) -> nn.Module:
        """Quantize the weights of all layers, on asymmetric scales."""
        return brevitas.quantize_with_peer(model, cache, self.bits, self.name, self.batch_size)[0]


@dataclass(frozen=True)
class RoundingTool:
    """AIMET's AdaRound: weights, for which its documentation names 4 bits and more.

    Attributes:
        bits: Bits per weight.
        batch_size: Images per forward pass.
        iterations: Steps of each layer.
    """

    bits: int
    batch_size: int
    iterations: int
    package: str = "aimet_torch"
    distributions: tuple[str, ...] = ("aimet-torch",)
    install: str = "pip install aimet-torch, with your torch as a constraint"
    activation_bits: int | None = None

    def prepare(self) -> None:
        """Import the modules of AIMET."""
        aimet.prepare()

    def quantize(self, model: nn.Module, architecture: Architecture, cache: ImageCache) -> nn.Module:
        """Learn the rounding of all layers, on symmetric scales."""
        return aimet.quantize_with_peer(model, cache, self.bits, self.batch_size, self.iterations)[0]


@dataclass(frozen=True)
class IntegerTool:
    """ONNX Runtime's quantize_static or NNCF: weights and activations of 8 bits, computed by ONNX Runtime.

    Attributes:
        name: One of `edged.comparators.peers.onnx_tools.PEERS`.
        batch_size: Images per step.
    """

    name: str
    batch_size: int
    package: str = "onnxruntime"
    distributions: tuple[str, ...] = ("onnxruntime",)
    install: str = EXTRA
    activation_bits: int | None = 8
    iterations: int = 0

    def prepare(self) -> None:
        """Import the tool."""
        importlib.import_module("onnxruntime.quantization" if self.package == "onnxruntime" else self.package)

    def quantize(self, model: nn.Module, architecture: Architecture, cache: ImageCache) -> nn.Module:
        """Write the network as an ONNX model and quantize that; a detector's output layers stay in float."""
        images = cache.calibration[: MAX_PIXELS // cache.input.size**2]
        batch = min(self.batch_size, len(images))  # only whole batches are read
        with tempfile.TemporaryDirectory(prefix="edged-") as folder:
            source, target = Path(folder) / "float.onnx", Path(folder) / "peer.onnx"
            # In the dialect of TensorRT, because its opset is one that NNCF writes no invalid QuantizeLinear for.
            in_float = onnx_model(model, {}, None, architecture, cache.input, target="tensorrt")
            source.write_bytes(in_float.SerializeToString())
            reduce_range = processor_saturates()
            onnx_tools.quantize_with_peer(self.name, source, target, cache, images, batch, reduce_range=reduce_range)
            return EngineNetwork(OnnxExecutor(target.read_bytes(), torch.get_num_threads()))


def open_peer(name: str, bits: int, batch_size: int, iterations: int | None = None) -> Peer:
    """Return a tool, ready to quantize.

    Args:
        name: "brevitas-gptq", "brevitas-qronos", "aimet-adaround", "quantize-static" or "nncf".
        bits: Bits per weight, where the tool leaves a choice.
        batch_size: Images per step.
        iterations: Most optimization steps of each layer, where it has some; None for the tool's own number.

    Raises:
        UnavailableError: Its package is not installed.
        UsageError: There is no such tool.
    """
    steps = aimet.ITERATIONS if iterations is None else min(iterations, aimet.ITERATIONS)
    tools: Mapping[str, Peer] = {
        **{name: WeightTool(name, bits, batch_size) for name in brevitas.PEERS},
        aimet.PEER: RoundingTool(bits, batch_size, steps),
        "quantize-static": IntegerTool("quantize_static, minmax", batch_size),
        "nncf": IntegerTool("NNCF", batch_size, "nncf", ("nncf", "onnxruntime")),
    }
    if name not in tools:
        raise UsageError(f"method has value {name!r}; {names_to_choose(name, tools, 'choose one of')}")
    tool = tools[name]
    if importlib.util.find_spec(tool.package) is None:
        raise UnavailableError(f"{tool.package} is not installed; {tool.install}")
    try:
        tool.prepare()
    except Exception as error:
        raise UnavailableError(f"{tool.package} cannot be imported here: {error!r:.300}; {tool.install}") from error
    return tool


def versions_of(peer: Peer) -> dict[str, str]:
    """Return the versions of the packages that a tool consists of, by their names."""
    return {name: importlib.metadata.version(name) for name in peer.distributions}

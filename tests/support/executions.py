"""Small networks as execution graphs: quantized by rounding, with ranges of random images, and run by ONNX Runtime."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from edged.execution.biases import with_representable_biases
from edged.execution.build import build_graph
from edged.execution.grids import ActivationGrid, ActivationScheme
from edged.execution.histogram import Histogram
from edged.execution.onnx_writer import CPU_DIALECT, Dialect, write_onnx
from edged.execution.placement import Placement, head_parameters, place
from edged.execution.positive_scales import with_positive_scales
from edged.execution.quantization import ActivationQuantization
from edged.execution.tensorrt import place_for_tensorrt
from edged.models.architecture import Architecture
from edged.models.cluster_affine import ClusterAffine
from edged.models.graph import Program
from edged.models.layers import quantizable_layers, shared_copy
from edged.models.registry import build
from edged.models.yolov5.network import YoloV5
from edged.models.yolov5.plan import Plan, parse_anchors, parse_rows
from edged.quant.grid import QuantizedWeight, minmax_grid
from edged.spec import FLOAT, Scheme
from tests.support.yolov5_samples import ANCHORS, BACKBONE, HEAD

CLASSES = ("cat", "dog", "cow")
FOCUS = [[-1, 1, "Focus", [32, 3]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "SPP", [32, [5, 9]]]]
SMALL_HEAD = [[-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[3, 2], 1, "Detect", ["nc", "anchors"]]]


@dataclasses.dataclass(frozen=True)
class Execution:
    """A quantized network and how integer engines run it.

    Attributes:
        network: The network with decoded weights.
        quantized: Its weights by their names in the state dict.
        activations: Ranges of its activations.
        placement: The values that are carried as codes.
        grids: Grid of each of them.
        images: The images that the ranges are of.
    """

    network: nn.Module
    quantized: Mapping[str, QuantizedWeight]
    activations: ActivationQuantization
    placement: Placement
    grids: Mapping[str, ActivationGrid]
    images: Tensor

    def onnx(self, *, batch: int | None = None, dialect: Dialect = CPU_DIALECT) -> onnx.ModelProto:
        """Return the network as an ONNX model."""
        with torch.inference_mode():
            shape = tuple(self.network(self.images[:1]).shape[1:])
        side = self.images.shape[-1]
        return write_onnx(self.placement, self.grids, side, "result", shape, batch=batch, dialect=dialect)

    def keeping(self, in_float: Iterable[str]) -> Execution:
        """Return the network with some layers kept in float, by their names."""
        layers = tuple(in_float)
        placement = place(build_graph(self.network, self.quantized), self.activations.float_layers, layers)
        ranges = {name: self.activations.ranges[name] for name in placement.values}
        activations = dataclasses.replace(self.activations, ranges=ranges, in_float=layers)
        grids = activations.grids()
        placement = with_representable_biases(placement, grids)
        return dataclasses.replace(self, activations=activations, placement=placement, grids=grids)

    def with_float_silu(self) -> Execution:
        """Return the network with SiLU in float from codes."""
        activations = dataclasses.replace(self.activations, silu=FLOAT)
        placement = dataclasses.replace(self.placement, float_silu=True)
        return dataclasses.replace(self, activations=activations, placement=placement)

    def for_tensorrt(self) -> Execution:
        """Return the network with the values that TensorRT carries as codes."""
        placement, grids = place_for_tensorrt(self.placement, self.activations)
        return dataclasses.replace(self, placement=with_representable_biases(placement, grids), grids=grids)


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network random weights, and BatchNorm statistics of random images with factors around 1 of both signs."""
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5).mul_(torch.where(torch.rand(len(module.weight)) < 0.1, -1.0, 1.0))
                module.bias.uniform_(-0.5, 0.5)
                module.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(images(model, 8))
    return model.eval().requires_grad_(False)


def images(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    """Return random images for a network, [count, channels, 32, 32]."""
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    channels = 3 if isinstance(model, YoloV5) else first.in_channels
    return torch.randn(count, channels, 32, 32, generator=torch.Generator().manual_seed(seed))


def classifier(name: str, **changes: object) -> nn.Module:
    """Return a classifier of the registry with random weights."""
    stem = "cifar" if name.startswith("cifar") else "small"
    return lively(build(Architecture(name, **{"num_classes": 7, "stem": stem, "shortcut": "projection"} | changes)))


def corrected() -> nn.Module:
    """Return a classifier whose logits are transformed, by other factors for each centroid."""
    model = classifier("cifar_resnet20")
    with torch.no_grad():
        logits = model(images(model, 6, seed=2))
    generator = torch.Generator().manual_seed(3)
    gain, shift = (torch.rand(logits.shape, generator=generator) + 0.5 for _ in range(2))
    model.correction = ClusterAffine(logits, gain, shift)
    return model


def detector(activation: str = "SiLU", *, focus: bool = False) -> YoloV5:
    """Return a tiny YOLOv5 with random weights; `focus` as those of v5.0 and before, with SPP."""
    rows = [*FOCUS, *SMALL_HEAD] if focus else [*BACKBONE, *HEAD]
    plan = Plan(0.33, 0.25, parse_rows(rows), parse_anchors(ANCHORS), CLASSES)
    return lively(YoloV5(dataclasses.replace(plan, activation=activation)))


FASTAI = ("concat_pool", "batchnorm", "linear:24:nobias", "relu", "batchnorm", "linear:7")
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "option A": lambda: classifier("cifar_resnet20", shortcut="pad"),
    "option B": lambda: classifier("cifar_resnet20", in_channels=1),
    "resnet18": lambda: classifier("resnet18", stem="imagenet"),
    "small stem with pooling": lambda: classifier("resnet18", stem_pooling=True),
    "resnet50 v1": lambda: classifier("resnet50", stem="imagenet", stride_in="1x1", stem_pooling=False),
    "yolov5": detector,
    "focus": lambda: detector("nn.LeakyReLU(0.1)", focus=True),
    "hardswish": lambda: detector("nn.Hardswish()"),
    "relu": lambda: detector("nn.ReLU()"),
    "head of fastai": lambda: classifier("cifar_resnet20", head=FASTAI),
    "batchnorm after linear": lambda: classifier("cifar_resnet20", head=("linear:24", "batchnorm", "relu", "linear:7")),
    "corrected logits": corrected,
    **{
        f"head with {kind}": (lambda kind=kind: classifier("cifar_resnet20", head=("linear:24", kind, "linear:7")))  # type: ignore[misc]
        for kind in ("leaky_relu", "gelu", "silu", "hardswish", "tanh", "sigmoid")
    },
}


@functools.cache
def network(name: str) -> nn.Module:
    """Return one of `NETWORKS`, which tests share: copy it to modify it."""
    return NETWORKS[name]()


@functools.cache
def executed(name: str, bits: int = 7, scheme: Scheme = Scheme.ASYMMETRIC) -> Execution:
    """Return one of `NETWORKS`, quantized; tests share it."""
    return execution(network(name), bits, scheme)


def rounded_weights(
    model: nn.Module, bits: int = 7, scheme: Scheme = Scheme.ASYMMETRIC
) -> tuple[nn.Module, dict[str, QuantizedWeight]]:
    """Return a copy of a network with its weights rounded to the nearest codes, and these."""
    changed, quantized = shared_copy(model), {}
    for name, layer in quantizable_layers(changed).items():
        rows = layer.weight.detach().flatten(1)
        grid = minmax_grid(rows, bits, scheme)
        weight = grid.quantized(grid.encode(rows), tuple(layer.weight.shape))
        quantized[f"{name}.weight"] = weight
        layer.weight = nn.Parameter(weight.decode(), requires_grad=False)
    return changed, quantized


def histograms(model: nn.Module, images: Tensor) -> dict[str, Histogram]:
    """Return a histogram of each value of a network."""
    found: dict[str, Histogram] = {}

    def observe(name: str, value: Tensor) -> Tensor:
        found.setdefault(name, Histogram()).update(value.detach().clone())
        return value

    program = Program(model)
    observe(program.input, images)
    with torch.inference_mode():
        program.run({program.input: images}, 0, None, dict(model.named_modules()), replace=observe)
    return found


def execution(
    model: nn.Module,
    bits: int = 7,
    scheme: Scheme = Scheme.ASYMMETRIC,
    activation_scheme: ActivationScheme = ActivationScheme.ASYMMETRIC,
) -> Execution:
    """Quantize a network: weights by rounding, activations over the whole range of random images."""
    model, quantized = rounded_weights(with_positive_scales(model), bits, scheme)
    graph = build_graph(model, quantized)
    placement = place(graph, head_parameters(graph))
    batch = images(model, 4, seed=1)
    seen = histograms(model, batch)
    ranges = {name: (seen[name].low, seen[name].high) for name in placement.values}
    activations = ActivationQuantization(8, ranges, tuple(head_parameters(graph)))
    grids = activations.grids(activation_scheme)
    return Execution(model, quantized, activations, with_representable_biases(placement, grids), grids, batch)


def session(model: onnx.ModelProto | bytes, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Return a session of ONNX Runtime that computes exactly, also on processors that saturate sums of two products."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, images: Tensor) -> Tensor:
    """Return the outputs of an ONNX model."""
    (result,) = session(model).run(None, {"input": images.numpy()})
    return torch.from_numpy(np.asarray(result))


def operations(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Return how often ONNX Runtime runs each kind of operation after its optimizations."""
    session(model, folder / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Return |found - wanted|^2 / |wanted|^2."""
    return float((found - wanted).square().sum() / wanted.square().sum())

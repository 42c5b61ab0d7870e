"""Conversion of a network to its execution graph."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from edged.errors import ArchitectureError
from edged.execution import graph as ops
from edged.execution.graph import Graph, Node, Weight
from edged.models.cluster_affine import ClusterAffine
from edged.models.graph import trace
from edged.quant.grid import QuantizedWeight

# The 2x2 corners that YOLOv5's Focus joins, in its order: (row, column) offsets.
_CORNERS = ((0, 0), (1, 0), (0, 1), (1, 1))


def build_graph(model: nn.Module, quantized: Mapping[str, QuantizedWeight] | None = None) -> Graph:
    """Convert a ResNet or a YOLOv5 to its execution graph.

    BatchNorm is folded: y = a (W x) + (b - a m) with a = gamma / sqrt(var + eps) per output channel. Codes are kept bit
    for bit, their scales are multiplied by a.

    Args:
        model: Network in eval mode on the CPU. Not modified; weights without BatchNorm are shared.
        quantized: Quantized weights by their names in the state dict, as `Compressed.quantized`; the others are kept in
            full precision.

    Raises:
        ArchitectureError: The network has an operation that the graph does not have.
    """
    return _Builder(model, quantized or {}).build()


class _Builder:
    def __init__(self, model: nn.Module, quantized: Mapping[str, QuantizedWeight]) -> None:
        self._modules = dict(model.named_modules())
        self._quantized = quantized
        self._trace = trace(model)
        self._nodes: dict[str, Node] = {}
        self._renamed: dict[str, str] = {}  # values of steps without an operation of their own
        self._corners: dict[str, tuple[str, tuple[int, int], tuple[int, int]]] = {}  # value: source, offset, step

    def build(self) -> Graph:
        placeholder, output = "", ""
        for step in self._trace.nodes:
            if step.op == "placeholder":
                placeholder = step.name
            elif step.op == "output":
                output = self._name(step.all_input_nodes[0])
            else:
                self._convert(step)
        nodes = _that_reach(output, self._nodes.values())
        self._check(nodes, placeholder)
        return Graph(placeholder, _channels(nodes, placeholder), nodes, output)

    def _check(self, nodes: tuple[Node, ...], placeholder: str) -> None:
        """Check that no step is left that only stands for a part of an operation."""
        known = {placeholder, *(node.name for node in nodes)}
        for node in nodes:
            if isinstance(node, _Corners | _Rows) or any(name not in known for name in node.inputs):
                raise ArchitectureError(
                    f"step {node.name} of the network selects or rearranges values as no operation of the graph does"
                )

    def _name(self, step: fx.Node) -> str:
        return self._renamed.get(step.name, step.name)

    def _inputs(self, step: fx.Node) -> tuple[str, ...]:
        return tuple(self._name(read) for read in step.all_input_nodes)

    def _convert(self, step: fx.Node) -> None:
        if step.op == "call_module":
            module = self._modules[str(step.target)]
            handler: Callable[..., None] | None = self._MODULES.get(type(module))
            if handler is None:
                raise self._unknown(step, type(module).__name__)
            handler(self, step, module)
            return
        table = self._FUNCTIONS if step.op == "call_function" else self._METHODS
        handler = table.get(step.target)
        if handler is None:
            raise self._unknown(step, getattr(step.target, "__name__", str(step.target)))
        handler(self, step)

    def _unknown(self, step: fx.Node, kind: str) -> ArchitectureError:
        return ArchitectureError(f"step {step.name} of the network ({kind}) has no counterpart in the execution graph")

    def _add(self, node: Node) -> None:
        self._nodes[node.name] = node

    def _weight(self, name: str, values: Tensor) -> Weight:
        parameter = f"{name}.weight"
        return Weight(parameter, values.detach(), self._quantized.get(parameter))

    def _conv(self, step: fx.Node, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros" or set(module.dilation) != {1} or isinstance(module.padding, str):
            raise self._unknown(step, "a dilated convolution, or one with other padding than zeros")
        weight = self._weight(str(step.target), module.weight)
        stride, padding = cast(ops.Pair, module.stride), cast(ops.Pair, module.padding)
        node = ops.Conv(step.name, self._inputs(step), weight, _bias(module), stride, padding, module.groups)
        corners = self._nodes.get(node.inputs[0])
        if isinstance(corners, _Corners):
            if node.groups != 1:
                raise self._unknown(step, "a grouped convolution after a join of pixels")
            node = _over_corners(node, corners)
        self._add(node)

    def _linear(self, step: fx.Node, module: nn.Linear) -> None:
        weight = self._weight(str(step.target), module.weight)
        self._add(ops.Linear(step.name, self._inputs(step), weight, _bias(module)))

    def _batchnorm(self, step: fx.Node, module: nn.BatchNorm2d) -> None:
        read = step.all_input_nodes[0]
        source = self._nodes.get(self._name(read))
        if not isinstance(source, ops.Conv) or len(read.users) != 1:
            raise self._unknown(step, "a BatchNorm that does not follow a convolution")
        del self._nodes[source.name]
        self._add(_folded(source, step.name, module))

    def _batchnorm_of_vectors(self, step: fx.Node, module: nn.BatchNorm1d) -> None:
        """Fold into the linear layer before, if there is one; the codes of the one after it have no scale a column."""
        read = step.all_input_nodes[0]
        source, factor = self._nodes.get(read.name), _factor(step.name, module)
        if not isinstance(source, ops.Linear) or len(read.users) != 1 or _turns(source, factor):
            self._add(ops.Affine(step.name, self._inputs(step), factor, _shift(module, factor)))
            return
        del self._nodes[source.name]
        self._add(_folded(source, step.name, module))

    def _cluster_affine(self, step: fx.Node, module: ClusterAffine) -> None:
        self._add(ops.ClusterAffine(step.name, self._inputs(step), module.centroids, module.gain, module.shift))

    def _max_pool(self, step: fx.Node, module: nn.MaxPool2d) -> None:
        if module.ceil_mode or module.dilation != 1:
            raise self._unknown(step, "a max-pooling that is dilated or rounds up")
        kernel, stride, padding = module.kernel_size, module.stride, module.padding
        self._add(ops.MaxPool(step.name, self._inputs(step), cast(int, kernel), cast(int, stride), cast(int, padding)))

    def _upsample(self, step: fx.Node, module: nn.Upsample) -> None:
        factor = module.scale_factor
        if module.mode != "nearest" or not isinstance(factor, int | float) or factor != int(factor):
            raise self._unknown(step, "an enlargement other than by a whole factor to the nearest pixel")
        self._add(ops.Resize(step.name, self._inputs(step), int(factor)))

    def _leaky(self, step: fx.Node, module: nn.LeakyReLU) -> None:
        self._add(ops.LeakyRelu(step.name, self._inputs(step), module.negative_slope))

    def _relu(self, step: fx.Node, *_: object) -> None:
        self._add(ops.Relu(step.name, self._inputs(step)))

    def _silu(self, step: fx.Node, *_: object) -> None:
        self._add(ops.Silu(step.name, self._inputs(step)))

    def _hardswish(self, step: fx.Node, *_: object) -> None:
        self._add(ops.HardSwish(step.name, self._inputs(step)))

    def _gelu(self, step: fx.Node, module: nn.GELU) -> None:
        if module.approximate != "none":
            raise self._unknown(step, "an approximated GELU")
        self._add(ops.Gelu(step.name, self._inputs(step)))

    def _tanh(self, step: fx.Node, *_: object) -> None:
        self._add(ops.Tanh(step.name, self._inputs(step)))

    def _sigmoid(self, step: fx.Node, *_: object) -> None:
        self._add(ops.Sigmoid(step.name, self._inputs(step)))

    def _average(self, step: fx.Node, module: nn.AdaptiveAvgPool2d) -> None:
        """Convert the pooling; the flattening after it is a part of the operation."""
        if module.output_size not in (1, (1, 1)):
            raise self._unknown(step, "a pooling to more than one pixel")
        self._add(ops.GlobalAveragePool(step.name, self._inputs(step)))

    def _over_pixels(self, step: fx.Node) -> None:
        """Convert the mean or the maximum of each map."""
        kind = ops.GlobalMaxPool if step.target == "amax" else ops.GlobalAveragePool
        if step.args[1:] != ((2, 3),):
            raise self._unknown(step, f"{step.target} over other axes than height and width")
        self._add(kind(step.name, self._inputs(step)))

    def _renaming(self, step: fx.Node, *_: object) -> None:
        """Skip a step that only passes its input on."""
        self._renamed[step.name] = self._name(step.all_input_nodes[0])

    def _addition(self, step: fx.Node) -> None:
        inputs = tuple(self._name(cast(fx.Node, read)) for read in step.args)
        self._add(ops.Add(step.name, inputs))

    def _concat(self, step: fx.Node) -> None:
        parts = [cast(fx.Node, part) for part in cast(Any, step.args[0])]
        inputs = tuple(self._name(part) for part in parts)
        rows = [self._nodes.get(name) for name in inputs]
        if all(isinstance(row, _Rows) for row in rows):
            maps = tuple(cast(_Rows, row).inputs[0] for row in rows)
            self._add(ops.Predictions(step.name, maps, cast(_Rows, rows[0]).outputs))
        elif len(parts) == 4 and all(name in self._corners for name in inputs):
            self._add(self._focus(step, inputs))
        else:
            self._add(ops.Concat(step.name, inputs))

    def _focus(self, step: fx.Node, inputs: tuple[str, ...]) -> _Corners:
        slices = [self._corners[name] for name in inputs]
        if tuple(offset for _, offset, _ in slices) != _CORNERS or {size for *_, size in slices} != {(2, 2)}:
            raise self._unknown(step, "a join of pixels in another order than YOLOv5's Focus")
        return _Corners(step.name, (slices[0][0],))

    def _slice(self, step: fx.Node) -> None:
        """Note a slice x[..., a::s, b::t]: every s-th row from a on and every t-th column from b on."""
        index = cast(Any, step.args[1])
        if not isinstance(index, tuple) or len(index) < 3 or not all(isinstance(part, slice) for part in index[-2:]):
            raise self._unknown(step, "a selection other than every n-th row and column")
        rows, columns = index[-2:]
        whole = all(part is Ellipsis or part == slice(None) for part in index[:-2])
        if not whole or rows.stop is not None or columns.stop is not None:
            raise self._unknown(step, "a slice that ends before the edge")
        offset, stride = (rows.start or 0, columns.start or 0), (rows.step or 1, columns.step or 1)
        self._corners[step.name] = (self._name(step.all_input_nodes[0]), offset, stride)

    def _pad(self, step: fx.Node) -> None:
        """Convert option A of the CIFAR ResNets to a 1x1 convolution that copies channels; the new ones are zero."""
        found, border = self._corners.get(self._name(step.all_input_nodes[0])), cast(Any, step.args[1])
        if found is None or len(border) != 6 or any(border[:4]) or found[1] != (0, 0):
            raise self._unknown(step, "a border around a map")
        source, _, stride = found
        front, back = border[4:]
        channels = self._width(source)
        values = torch.zeros(front + channels + back, channels, 1, 1)
        values[front : front + channels, :, 0, 0] = torch.eye(channels)
        exact = QuantizedWeight(
            codes=values.flatten(1).to(torch.uint8),
            scale=torch.ones(len(values)),
            zero_point=torch.zeros(len(values), dtype=torch.uint8),
            bits=2,
            shape=tuple(values.shape),
        )
        weight = Weight("", values, exact if self._quantized else None)
        self._add(ops.Conv(step.name, (source,), weight, torch.zeros(len(values)), stride))

    def _width(self, name: str) -> int:
        """Return the channels of a map that was already converted."""
        node = self._nodes[name]
        while not isinstance(node, ops.Conv):
            node = self._nodes[node.inputs[0]]
        return len(node.bias)

    def _rows(self, step: fx.Node) -> None:
        """Skip the permutation and flattening of a detector's maps, which `Predictions` stands for."""
        if step.target == "unflatten":
            outputs = cast(Any, step.args[2])[1]
            self._add(_Rows(step.name, self._inputs(step), outputs))
        else:
            self._renaming(step)

    _MODULES: Mapping[type[nn.Module], Callable[..., None]] = {
        nn.Conv2d: _conv,
        nn.Linear: _linear,
        nn.BatchNorm2d: _batchnorm,
        nn.BatchNorm1d: _batchnorm_of_vectors,
        ClusterAffine: _cluster_affine,
        nn.MaxPool2d: _max_pool,
        nn.Upsample: _upsample,
        nn.ReLU: _relu,
        nn.LeakyReLU: _leaky,
        nn.SiLU: _silu,
        nn.Hardswish: _hardswish,
        nn.GELU: _gelu,
        nn.Tanh: _tanh,
        nn.Sigmoid: _sigmoid,
        nn.AdaptiveAvgPool2d: _average,
        nn.Identity: _renaming,
        nn.Dropout: _renaming,
    }
    _FUNCTIONS: Mapping[Any, Callable[..., None]] = {
        operator.add: _addition,
        operator.iadd: _addition,
        operator.getitem: _slice,
        torch.cat: _concat,
        torch.flatten: _renaming,
        functional.relu: _relu,
        torch.relu: _relu,
        functional.pad: _pad,
    }
    _METHODS: Mapping[Any, Callable[..., None]] = {
        "permute": _rows,
        "flatten": _rows,
        "unflatten": _rows,
        "amax": _over_pixels,
        "mean": _over_pixels,
    }


class _Corners(Node):
    """The 2x2 corners of each square of pixels as channels, until the convolution that reads them takes them over."""


class _Rows(Node):
    """A detector's map as rows, until the concatenation that joins them."""

    outputs: int

    def __init__(self, name: str, inputs: tuple[str, ...], outputs: int) -> None:
        super().__init__(name, inputs)
        object.__setattr__(self, "outputs", outputs)


def _bias(module: nn.Conv2d | nn.Linear) -> Tensor:
    return module.weight.new_zeros(len(module.weight)) if module.bias is None else module.bias.detach()


def _factor(name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Tensor:
    """Return gamma / sqrt(var + eps)."""
    if norm.running_mean is None or norm.running_var is None:
        raise ArchitectureError(f"the BatchNorm {name} has no statistics, so it cannot be folded")
    gamma = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    return (gamma.double() / (norm.running_var.double() + norm.eps).sqrt()).float()


def _shift(norm: nn.BatchNorm1d | nn.BatchNorm2d, factor: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Return what the BatchNorm adds to factor * x, where x comes without its bias."""
    mean = cast(Tensor, norm.running_mean)
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
    return (bias - mean) * factor + beta


def _turns(layer: ops.Weighted, factor: Tensor) -> bool:
    """Return whether the factor would make a scale negative, which engines take for no weight."""
    return layer.weight.quantized is not None and bool((factor < 0).any())


def _folded(layer: ops.Weighted, name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> ops.Weighted:
    """Return the layer with the BatchNorm folded in, under the BatchNorm's name."""
    factor = _factor(name, norm)
    quantized = layer.weight.quantized
    if quantized is not None:
        quantized = dataclasses.replace(quantized, scale=quantized.scale * factor)
    shape = (-1,) + (1,) * (layer.weight.values.dim() - 1)
    values = quantized.decode() if quantized is not None else layer.weight.values * factor.view(shape)
    weight = Weight(layer.weight.parameter, values, quantized)
    return dataclasses.replace(layer, name=name, weight=weight, bias=_shift(norm, factor, layer.bias))


def _over_corners(conv: ops.Conv, corners: _Corners) -> ops.Conv:
    """Return the convolution over corners as one over pixels, with a kernel twice as large and twice the stride."""

    def spread(weight: Tensor) -> Tensor:
        rows, joined, height, width = weight.shape
        channels = joined // 4
        spreaded = torch.empty((rows, channels, 2 * height, 2 * width), dtype=weight.dtype)
        for index, (row, column) in enumerate(_CORNERS):
            spreaded[:, :, row::2, column::2] = weight[:, index * channels : (index + 1) * channels]
        return spreaded

    values, quantized = spread(conv.weight.values), conv.weight.quantized
    if quantized is not None:
        codes = spread(quantized.codes.view(quantized.shape))
        shape = tuple(codes.shape)
        quantized = dataclasses.replace(quantized, codes=codes.flatten(1), shape=shape)
    weight = Weight(conv.weight.parameter, values, quantized)
    stride, padding = ((2 * pair[0], 2 * pair[1]) for pair in (conv.stride, conv.padding))
    return ops.Conv(conv.name, corners.inputs, weight, conv.bias, stride, padding, conv.groups)


def _that_reach(output: str, nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Return the nodes whose values the output needs: none that were taken over by others."""
    wanted, kept = {output}, []
    for node in reversed(tuple(nodes)):
        if node.name in wanted:
            kept.append(node)
            wanted |= set(node.inputs)
    return tuple(kept[::-1])


def _channels(nodes: tuple[Node, ...], placeholder: str) -> int:
    first = next((node for node in nodes if placeholder in node.inputs), None)
    if not isinstance(first, ops.Conv):
        raise ArchitectureError("the network does not begin with a convolution, as the execution graph does")
    return first.weight.values.shape[1] * first.groups

"""TensorRT's rules for explicit quantization, checked on the ONNX model that it would read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

_LAYERS = ("Conv", "Gemm")
_COPYING = ("MaxPool", "Resize", "Concat")
_WITHOUT_WEIGHTS = ("Relu", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Concat")
_IN_FLOAT = ("Sigmoid", "Mul", "Relu", "LeakyRelu", "HardSwish", "Gelu", "Tanh")


def check_tensorrt(model: onnx.ModelProto) -> list[str]:
    """Return how a model breaks TensorRT's rules, in order of its nodes; an empty list if it does not.

    - Grids are symmetric and in int8, of activations with one scale, of weights with one for each output channel.
    - The input of a layer with a quantized weight is quantized; its bias is in float.
    - A layer's output is not quantized before its activation. Activations read no codes.
    - Of a sum in a quantized network, one input is quantized: not the one that a layer computes for it alone. None is
      where a layer in float reads an input or the sum.
    - Max-pooling, enlargement and concatenation have codes of one scale on all sides, or on none.

    Args:
        model: The model, which onnx.checker accepts. Not modified.
    """
    return list(_Rules(model).violations())


class _Rules:
    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self._nodes = list(graph.node)
        self._constants: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._producers: Mapping[str, NodeProto] = {name: node for node in graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        self._integer = any(node.op_type == "QuantizeLinear" for node in graph.node)

    def violations(self) -> Iterator[str]:
        for node in self._nodes:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                yield from self._grid(node)
            elif node.op_type in _LAYERS:
                yield from self._layer(node)
            elif node.op_type == "Add":
                yield from self._sum(node)
            elif node.op_type in _COPYING:
                yield from self._copy(node)
            elif node.op_type in _IN_FLOAT and any(self._source(name) for name in node.input):
                yield f"{node.op_type} {node.name} reads codes; it has to compute in float"

    def _source(self, name: str) -> NodeProto | None:
        """Return the DequantizeLinear that gives a value, or None."""
        node = self._producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _scale(self, node: NodeProto) -> npt.NDArray[np.float32]:
        tensor = self._constants.get(node.input[1])
        return np.zeros(0, np.float32) if tensor is None else numpy_helper.to_array(tensor)

    def _grid(self, node: NodeProto) -> Iterator[str]:
        scale = self._scale(node)
        if not scale.size or not bool((scale > 0).all()):
            yield f"{node.op_type} {node.name} has a scale that is not constant and positive"
        zero = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.data_type != TensorProto.INT8 or bool(numpy_helper.to_array(zero).any()):
            yield f"{node.op_type} {node.name} is not symmetric in int8"
        codes = self._constants.get(node.input[0])
        if codes is None and scale.ndim:
            yield f"{node.op_type} {node.name} has a scale for each channel of an activation"
        if codes is not None and (codes.data_type != TensorProto.INT8 or scale.shape != tuple(codes.dims[:1])):
            yield f"{node.op_type} {node.name} does not have int8 codes with a scale for each output channel"

    def _layer(self, node: NodeProto) -> Iterator[str]:
        given, weight = (self._source(name) is not None for name in node.input[:2])
        if weight and not given:
            yield f"{node.op_type} {node.name} has a quantized weight and a float input"
        if len(node.input) > 2 and node.input[2] not in self._constants:
            yield f"{node.op_type} {node.name} has a bias that is not a constant in float"
        for reader in self._readers.get(node.output[0], []):
            if reader.op_type == "QuantizeLinear" and not self._feeds_layers_or_sums(reader):
                yield f"the output of {node.op_type} {node.name} is quantized before its activation"

    def _feeds_layers_or_sums(self, quantize: NodeProto) -> bool:
        restored = [node.output[0] for node in self._readers.get(quantize.output[0], [])]
        readers = [reader for name in restored for reader in self._readers.get(name, [])]
        return all(reader.op_type in (*_LAYERS, *_COPYING, "Add") for reader in readers)

    def _sum(self, node: NodeProto) -> Iterator[str]:
        if not self._integer or any(name in self._constants or self._is_chosen(name) for name in node.input):
            return
        quantized = [self._source(name) is not None for name in node.input]
        if all(quantized):
            yield f"both inputs of Add {node.name} are quantized, so no convolution can take it in"
        elif not any(quantized) and not any(self._reaches_float(name) for name in (*node.input, *node.output)):
            yield f"no input of Add {node.name} is quantized"

    def _is_chosen(self, name: str) -> bool:
        """Return whether a value is chosen among constants, as the shift of logits is by the nearest centroid."""
        node = self._producers.get(name)
        return node is not None and node.op_type == "Gather" and node.input[0] in self._constants

    def _reaches_float(self, name: str) -> bool:
        """Return whether a value gets to a layer with a float weight, without codes in between."""
        for reader in self._readers.get(name, []):
            if reader.op_type in _LAYERS and self._source(reader.input[1]) is None:
                return True
            if reader.op_type in _WITHOUT_WEIGHTS and self._reaches_float(reader.output[0]):
                return True
        return False

    def _copy(self, node: NodeProto) -> Iterator[str]:
        inputs = [name for name in node.input if name and name not in self._constants]
        before = [source for name in inputs if (source := self._source(name)) is not None]
        readers = self._readers.get(node.output[0], [])
        after = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if node.op_type != "Concat" and not before:  # quantization may follow: TensorRT moves it up
            return
        if not before and not after:
            return
        if len(before) < len(inputs) or len(after) < len(readers) or not after:
            yield f"{node.op_type} {node.name} has codes on one side only"
        elif len({self._scale(grid).tobytes() for grid in (*before, *after)}) > 1:
            yield f"{node.op_type} {node.name} has codes of several scales"

"""Writer of a graph as an ONNX model that computes on integers.

Values that are carried as codes are written as QuantizeLinear and DequantizeLinear pairs around operations in float,
which engines fuse to integer kernels (ONNX Runtime: QLinearConv, QLinearAdd, QGemm). Weights are written as the codes
of the artifact, bit for bit: those of 4 bits and fewer as packed 4-bit initializers, which engines unpack once when
they load the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edged.errors import ArtifactError
from edged.execution import graph as ops
from edged.execution.graph import Node, Weight
from edged.execution.grids import ActivationGrid, Grids
from edged.execution.placement import Placement
from edged.execution.rearranged import SPLIT_ORDER, JoinedPixels, joined_pixels, products_of_codes
from edged.quant.grid import QuantizedWeight
from edged.quant.power_grid import PowerWeight, magnitudes

PACKED_BITS = 4
SIGNED_MAX = 127

INPUT = "input"
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class Dialect:
    """The parts of ONNX that an engine reads.

    Attributes:
        opset: Version of the operators.
        ir_version: Version of the file format.
        packed: Whether codes of 4 bits and fewer are packed.
        integer_bias: Whether biases of integer layers are whole numbers of the accumulator's steps.
        rearranged: Whether layers are written as equal ones that ONNX Runtime computes faster.
        quick_gelu: Whether a SiLU in float from codes is written as an operation of ONNX Runtime's own.
    """

    opset: int
    ir_version: int
    packed: bool
    integer_bias: bool
    rearranged: bool = False
    quick_gelu: bool = False


# The first opset with 4-bit integers.
CPU_DIALECT = Dialect(21, 10, packed=True, integer_bias=True, rearranged=True, quick_gelu=True)
OPENVINO_DIALECT = Dialect(21, 10, packed=True, integer_bias=True)
TENSORRT_DIALECT = Dialect(20, 9, packed=False, integer_bias=False)  # JetPack 6 reads no later opset

# Operations without attributes.
_SAME_NAME: Mapping[type[Node], str] = {
    ops.Add: "Add",
    ops.Relu: "Relu",
    ops.HardSwish: "HardSwish",
    ops.Gelu: "Gelu",
    ops.Tanh: "Tanh",
    ops.Sigmoid: "Sigmoid",
}


def write_onnx(
    placement: Placement,
    grids: Grids,
    size: int,
    output: str,
    output_shape: Sequence[int],
    *,
    batch: int | None = 1,
    metadata: Mapping[str, str] | None = None,
    dialect: Dialect = CPU_DIALECT,
) -> onnx.ModelProto:
    """Write a graph as an ONNX model.

    Args:
        placement: The graph and its values that are carried as codes.
        grids: Grid of each of `placement.values`.
        size: Side of the input in pixels.
        output: Name of the output.
        output_shape: Shape of the outputs of one image.
        batch: Images per call; None for any number.
        metadata: Entries of the model's metadata_props.
        dialect: The parts of ONNX to use.

    Raises:
        ArtifactError: Codes do not fit the engines' 8 bits.
    """
    graph = placement.graph
    writer = _Writer(placement, grids, size, dialect)
    writer.write_input()
    for node in graph.nodes:
        writer.write(node)
    first: int | str = "batch" if batch is None else batch
    body = helper.make_graph(
        [*writer.nodes, helper.make_node("Identity", [writer.read(graph.output)], [output], name=output)],
        "edged",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [first, graph.channels, size, size])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [first, *output_shape])],
        list(writer.initializers.values()),
    )
    opsets = [helper.make_opsetid("", dialect.opset)]
    if any(node.domain == MICROSOFT for node in writer.nodes):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    model = helper.make_model(body, opset_imports=opsets, ir_version=dialect.ir_version, producer_name="edged")
    helper.set_model_props(model, dict(metadata or {}))
    return model


class _Writer:
    """The nodes and initializers of a model under construction.

    Args:
        placement: The graph and its values that are carried as codes.
        grids: Grid of each of `placement.values`.
        size: Side of the input in pixels.
        dialect: The parts of ONNX to use.
    """

    def __init__(self, placement: Placement, grids: Grids, size: int, dialect: Dialect) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._placement, self._grids, self._dialect = placement, grids, dialect
        self._values: dict[str, str] = {}  # the ONNX value that readers of a value of the graph get
        self._sides = placement.graph.sides(size)
        self._joined: dict[str, JoinedPixels] = {}
        self._products: frozenset[str] = frozenset()
        if dialect.rearranged:
            joined = joined_pixels(placement, size)
            self._joined = {} if joined is None else {joined.layer: joined}
            self._products = products_of_codes(placement, grids)

    def read(self, name: str) -> str:
        """Return the ONNX value that stands for a value of the graph."""
        return self._values[name]

    def write_input(self) -> None:
        """Write the rounding of the input, whose pixels are joined to channels where that is faster."""
        name, value = self._placement.graph.input, INPUT
        for joined in self._joined.values():
            value = self._add("SpaceToDepth", [value], f"{name}.joined", blocksize=joined.block)
        self.quantize(name, value)

    def write(self, node: Node) -> None:
        """Write one operation, and the rounding of its value where that is carried as codes."""
        if isinstance(node, ops.Conv | ops.Linear):
            value = self._layer(node)
        else:
            value = self._operation(node, [self.read(name) for name in node.inputs])
        self.quantize(node.name, value)

    def quantize(self, name: str, value: str) -> None:
        """Let readers of `name` read `value`, rounded to its grid if it has one."""
        owner = self._placement.owners.get(name)
        if owner is None:
            self._values[name] = value
            return
        grid = self._grid(owner)
        codes = self._add("QuantizeLinear", [value, *grid], f"{name}.codes")
        self._values[name] = self._add("DequantizeLinear", [codes, *grid], f"{name}.dequantized")

    def _operation(self, node: Node, inputs: list[str]) -> str:
        name = node.name
        if isinstance(node, ops.MaxPool):
            window = {"kernel_shape": [node.kernel] * 2, "strides": [node.stride] * 2, "pads": [node.padding] * 4}
            return self._add("MaxPool", inputs, name, **window)
        if isinstance(node, ops.Concat):
            return self._add("Concat", inputs, name, axis=1)
        if isinstance(node, ops.GlobalAveragePool):
            return self._pooled("GlobalAveragePool", name, inputs)
        if isinstance(node, ops.GlobalMaxPool):
            return self._pooled("GlobalMaxPool", name, inputs)
        if isinstance(node, ops.Affine | ops.ClusterAffine):
            return self._affine(node, *inputs)
        if isinstance(node, ops.Resize):
            scales = self._constant(f"{name}.scales", np.array([1, 1, node.factor, node.factor], np.float32))
            modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
            return self._add("Resize", [*inputs, "", scales], name, **modes)
        if isinstance(node, ops.Silu):
            return self._silu(node, inputs)
        if isinstance(node, ops.LeakyRelu):
            return self._add("LeakyRelu", inputs, name, alpha=node.slope)
        if isinstance(node, ops.Predictions):
            return self._predictions(node, inputs)
        return self._add(_SAME_NAME[type(node)], inputs, name)

    def _affine(self, node: ops.Affine | ops.ClusterAffine, vectors: str) -> str:
        if isinstance(node, ops.Affine):
            factor, shift = (
                self._constant(f"{node.name}.{part}", _array(values))
                for part, values in (("factor", node.factor), ("shift", node.shift))
            )
        else:
            factor, shift = self._of_nearest(node, vectors)
        scaled = self._add("Mul", [vectors, factor], f"{node.name}.scaled")
        return self._add("Add", [scaled, shift], node.name)

    def _of_nearest(self, node: ops.ClusterAffine, logits: str) -> tuple[str, str]:
        """Write the factors and summands of the nearest centroid, see `edged.models.cluster_affine`."""
        name, centroids = node.name, node.centroids
        factors = self._constant(f"{name}.centroids", _array(-2 * centroids.T))
        squares = self._constant(f"{name}.squares", _array(centroids.square().sum(1)))
        distance = self._add("Gemm", [logits, factors, squares], f"{name}.distance")
        nearest = self._add("ArgMin", [distance], f"{name}.nearest", axis=1, keepdims=0)
        factor, shift = (
            self._add("Gather", [self._constant(f"{name}.{part}s", _array(values)), nearest], f"{name}.{part}")
            for part, values in (("factor", node.gain), ("shift", node.shift))
        )
        return factor, shift

    def _pooled(self, kind: str, name: str, inputs: list[str]) -> str:
        """Write a pooling of whole maps; its codes pass through the flattening unchanged."""
        pooled = self._add(kind, inputs, f"{name}.pooled")
        if name in self._placement.owners:
            grid = self._grid(self._placement.owners[name])
            pooled = self._add("QuantizeLinear", [pooled, *grid], f"{name}.pooled.codes")
            pooled = self._add("DequantizeLinear", [pooled, *grid], f"{name}.pooled.dequantized")
        return self._add("Flatten", [pooled], name)

    def _silu(self, node: ops.Silu, inputs: list[str]) -> str:
        """Write a SiLU, with a sigmoid on codes of 1/255 between 0 and 1 where that is rounded."""
        name, owner = node.name, self._placement.owners.get(node.inputs[0])
        if owner is not None and self._dialect.quick_gelu and not self._placement.rounds_gate(node):
            # ONNX Runtime fuses no sigmoid and product that read codes.
            return self._add("QuickGelu", inputs, name, domain=MICROSOFT, alpha=1.0)
        gate = self._add("Sigmoid", inputs, f"{name}.gate")
        if owner is not None and self._placement.rounds_gate(node):
            grid = self._grid_of(f"{name}.gate", self._grids[owner].of_gate())
            codes = self._add("QuantizeLinear", [gate, *grid], f"{name}.gate.codes")
            gate = self._add("DequantizeLinear", [codes, *grid], f"{name}.gate.dequantized")
        return self._add("Mul", [*inputs, gate], name)

    def _predictions(self, node: ops.Predictions, maps: list[str]) -> str:
        shape = self._constant(f"{node.name}.shape", np.array([0, -1, node.outputs], np.int64))
        rows = []
        for index, (name, value) in enumerate(zip(node.inputs, maps, strict=True)):
            if name in self._products:
                rows.append(
                    self._add("Reshape", [value, self._rows_of(name, node.outputs)], f"{node.name}.rows{index}")
                )
                continue
            turned = self._add("Transpose", [value], f"{node.name}.turned{index}", perm=[0, 2, 3, 1])
            rows.append(self._add("Reshape", [turned, shape], f"{node.name}.rows{index}"))
        return self._add("Concat", rows, node.name, axis=1)

    def _rows_of(self, name: str, outputs: int) -> str:
        """Return the shape of a map's rows [batch, anchors * height * width, outputs]."""
        layer = self._placement.graph.producers()[name]
        assert isinstance(layer, ops.Conv)  # noqa: S101  # a product of codes is one
        rows = self._sides[name] ** 2 * len(layer.weight.values) // outputs
        return self._constant(f"{name}.shape", np.array([-1, rows, outputs], np.int64))

    def _product(self, node: ops.Conv, owner: str) -> str:
        """Write a 1x1 convolution over codes as the product of its pixels, [batch * height * width, rows]."""
        rows, columns = node.weight.values.shape[:2]
        turned = self._add("Transpose", [f"{node.inputs[0]}.codes"], f"{node.name}.turned", perm=[0, 2, 3, 1])
        shape = self._constant(f"{node.name}.pixels.shape", np.array([-1, columns], np.int64))
        codes = self._add("Reshape", [turned, shape], f"{node.name}.pixels")
        pixels = self._add("DequantizeLinear", [codes, *self._grid(owner)], f"{node.name}.pixels.dequantized")
        matrix = self._constant(f"{node.name}.matrix.shape", np.array([rows, columns], np.int64))
        weight = self._integer_weight(node, matrix)
        return self._add("Gemm", [pixels, weight, self._integer_bias(node, self._grids[owner])], node.name, transB=1)

    def _layer(self, node: ops.Weighted) -> str:
        if isinstance(node, ops.Conv) and node.name in self._products:
            return self._product(node, self._placement.owners[node.inputs[0]])
        source = self.read(node.inputs[0])
        owner = self._placement.owners.get(node.inputs[0])
        integer = node.name not in self._placement.float_layers and owner is not None
        weight = self._integer_weight(node) if integer else self._float_weight(node)
        if integer and owner is not None and self._dialect.integer_bias:
            bias = self._integer_bias(node, self._grids[owner])
        else:
            bias = self._constant(f"{node.name}.bias", _array(node.bias))
        if isinstance(node, ops.Linear):
            return self._add("Gemm", [source, weight, bias], node.name, transB=1)
        return self._add("Conv", [source, weight, bias], node.name, **self._window(node))

    def _window(self, node: ops.Conv) -> dict[str, Any]:
        """Return the attributes of a convolution."""
        joined = self._joined.get(node.name)
        if joined is not None:
            return {"kernel_shape": joined.shape[2:], "strides": [1, 1], "pads": joined.pads, "group": 1}
        shape, (top, left) = node.weight.values.shape, node.padding
        pads = [top, left, top, left]
        return {"kernel_shape": list(shape[2:]), "strides": list(node.stride), "pads": pads, "group": node.groups}

    def _float_weight(self, node: ops.Weighted) -> str:
        """Write a weight in float; of a quantized one, the codes and what engines compute from them once, at load."""
        quantized, name = node.weight.quantized, f"{node.name}.weight"
        if quantized is None or not self._dialect.packed:
            return self._constant(name, _array(node.weight.values))
        codes = _array(quantized.codes).reshape(quantized.shape)
        if quantized.bits > PACKED_BITS:
            stored = self._constant(f"{name}.codes", codes)
        else:
            stored = self._packed(f"{name}.codes", codes, TensorProto.UINT4)
        zeros = _by_row(_array(quantized.zero_point), codes.ndim).astype(np.float32)
        scales = _by_row(_array(quantized.scale), codes.ndim)
        raised = self._add("Cast", [stored], f"{name}.raised", to=TensorProto.FLOAT)
        centered = self._add("Sub", [raised, self._constant(f"{name}.zeros", zeros)], f"{name}.centered")
        if isinstance(quantized, PowerWeight):
            centered = self._levels(name, quantized, centered)
        return self._add("Mul", [centered, self._constant(f"{name}.scales", scales)], name)

    def _levels(self, name: str, quantized: PowerWeight, steps: str) -> str:
        """Write the levels of a weight's steps from zero, looked up in a table for each exponent."""
        exponents, chosen = torch.unique(quantized.exponent, return_inverse=True)
        above = _array(magnitudes(exponents, quantized.bits))
        table = np.concatenate([-above[:, :0:-1], above], axis=1)
        zeros = _array(chosen).astype(np.float32) * table.shape[1] + table.shape[1] // 2
        shift = self._constant(f"{name}.level_zero", _by_row(zeros, len(quantized.shape)))
        places = self._add("Add", [steps, shift], f"{name}.place")
        indices = self._add("Cast", [places], f"{name}.index", to=TensorProto.INT32)
        return self._add("Gather", [self._constant(f"{name}.levels", table.ravel()), indices], f"{name}.level")

    def _integer_weight(self, node: ops.Weighted, shape: str | None = None) -> str:
        """Write a weight as codes, in another shape if one is given, by nodes that engines run once."""
        quantized = _quantized(node.weight)
        scale = self._constant(f"{node.name}.weight.scale", _array(quantized.scale))
        zero = self._constant(f"{node.name}.weight.zero_point", np.zeros(len(quantized.scale), np.int8))
        codes = self._codes(f"{node.name}.weight", quantized)
        if node.name in self._joined:
            codes = self._over_blocks(f"{node.name}.weight", codes, self._joined[node.name])
        if shape is not None:
            codes = self._add("Reshape", [codes, shape], f"{node.name}.matrix")
        return self._add("DequantizeLinear", [codes, scale, zero], f"{node.name}.weight", axis=0)

    def _over_blocks(self, name: str, codes: str, joined: JoinedPixels) -> str:
        """Write the codes of a weight over pixels in the shape of the one over blocks of them."""
        (top, left), (bottom, right) = joined.front, joined.back
        if any((top, left, bottom, right)):
            zeros = self._constant(f"{name}.around", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
            codes = self._add("Pad", [codes, zeros], f"{name}.padded")
        split = self._constant(f"{name}.split.shape", np.array(joined.split, np.int64))
        divided = self._add("Reshape", [codes, split], f"{name}.split")
        turned = self._add("Transpose", [divided], f"{name}.turned", perm=SPLIT_ORDER)
        shape = self._constant(f"{name}.joined.shape", np.array(joined.shape, np.int64))
        return self._add("Reshape", [turned, shape], f"{name}.joined")

    def _codes(self, name: str, quantized: QuantizedWeight) -> str:
        """Write codes less their zero points as int8, unpacked from 4 bits by nodes that engines run once."""
        codes = _array(quantized.codes).astype(np.int16).reshape(quantized.shape)
        zeros = _array(quantized.zero_point).astype(np.int16)
        if quantized.bits > PACKED_BITS or not self._dialect.packed:
            whole = codes - _by_row(zeros, codes.ndim)
            if whole.min() < -SIGNED_MAX - 1 or whole.max() > SIGNED_MAX:
                raise ArtifactError(
                    f"weight {name!r} has {quantized.bits}-bit codes around zero points {zeros.min()} to {zeros.max()},"
                    " which engines cannot hold in 8 bits; quantize with a symmetric scheme or 7 bits"
                )
            return self._constant(f"{name}.codes", whole.astype(np.int8))
        middle = 1 << quantized.bits - 1
        if (zeros == middle).all():
            packed = self._packed(f"{name}.codes", codes - middle, TensorProto.INT4)
            return self._add("Cast", [packed], f"{name}.unpacked", to=TensorProto.INT8)
        packed = self._packed(f"{name}.codes", codes, TensorProto.UINT4)
        raised = self._add("Cast", [packed], f"{name}.raised", to=TensorProto.FLOAT)
        shift = self._constant(f"{name}.zeros", _by_row(zeros, codes.ndim).astype(np.float32))
        centered = self._add("Sub", [raised, shift], f"{name}.centered")
        return self._add("Cast", [centered], f"{name}.unpacked", to=TensorProto.INT8)

    def _packed(self, name: str, codes: npt.NDArray[Any], kind: int) -> str:
        """Write 4-bit integers, two to a byte, the first in the low half."""
        flat = (codes.ravel() & 0xF).astype(np.uint8)
        flat = np.append(flat, np.zeros(len(flat) % 2, np.uint8))
        packed = flat[0::2] | (flat[1::2] << 4)
        self.initializers[name] = helper.make_tensor(name, kind, codes.shape, packed.tobytes(), raw=True)
        return name

    def _integer_bias(self, node: ops.Weighted, grid: ActivationGrid) -> str:
        """Write the bias in units of the accumulator, which engines add before they scale."""
        scale = np.float32(grid.scale) * _array(_quantized(node.weight).scale)
        limit = np.iinfo(np.int32).max
        with np.errstate(divide="ignore", invalid="ignore"):
            steps = np.nan_to_num(_array(node.bias).astype(np.float64) / scale, nan=0.0)
        codes = self._constant(f"{node.name}.bias.codes", np.rint(np.clip(steps, -limit, limit)).astype(np.int32))
        scales = self._constant(f"{node.name}.bias.scale", scale.astype(np.float32))
        zero = self._constant(f"{node.name}.bias.zero_point", np.zeros(len(scale), np.int32))
        return self._add("DequantizeLinear", [codes, scales, zero], f"{node.name}.bias", axis=0)

    def _grid(self, owner: str) -> tuple[str, str]:
        return self._grid_of(owner, self._grids[owner])

    def _grid_of(self, name: str, grid: ActivationGrid) -> tuple[str, str]:
        """Write a grid once, as scalars: engines do not fuse additions whose scales are vectors of one."""
        kind = np.int8 if grid.signed else np.uint8
        scale = self._constant(f"{name}.scale", np.array(grid.scale, np.float32))
        return scale, self._constant(f"{name}.zero_point", np.array(grid.zero_point, kind))

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _quantized(weight: Weight) -> QuantizedWeight:
    if weight.quantized is None:
        raise ArtifactError(f"weight {weight.parameter!r} has no codes; let its layer compute in float")
    return weight.quantized


def _by_row(values: npt.NDArray[Any], dimensions: int) -> npt.NDArray[Any]:
    return values.reshape(-1, *(1,) * (dimensions - 1))


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array

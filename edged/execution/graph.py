"""The graph of a network for execution: a short list of operations, with BatchNorm folded into the weights.

Everything that runs a network reads this graph: the integer simulator, the ONNX writer and the checks of a target's
rules. Values are named as torch.fx names them, so that ranges measured while a network is quantized apply here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from edged.quant.grid import QuantizedWeight

Pair = tuple[int, int]


@dataclass(frozen=True)
class Weight:
    """The weight of a convolution or a linear layer, with the BatchNorm that follows folded in.

    Attributes:
        parameter: Name of the weight in the network's state dict; "" for a weight that the graph itself defines.
        values: Decoded weight, float32 [rows, ...].
        quantized: Codes of the state dict, bit for bit, with scales that include the BatchNorm; None for a weight in
            full precision.
    """

    parameter: str
    values: Tensor
    quantized: QuantizedWeight | None = None


@dataclass(frozen=True)
class Node:
    """An operation and the value that it computes.

    Attributes:
        name: Name of the value.
        inputs: Names of the values that it reads.
    """

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Conv(Node):
    """A convolution.

    Attributes:
        weight: Weight [rows, in_channels / groups, height, width].
        bias: Bias, float32 [rows].
        stride: Steps of the kernel.
        padding: Zeros at the top and the left, and as many at the bottom and the right.
        groups: Number of convolution groups.
    """

    weight: Weight
    bias: Tensor
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    groups: int = 1


@dataclass(frozen=True)
class Linear(Node):
    """A linear layer over vectors [batch, columns].

    Attributes:
        weight: Weight [rows, columns].
        bias: Bias, float32 [rows].
    """

    weight: Weight
    bias: Tensor


@dataclass(frozen=True)
class Add(Node):
    """The sum of two values of one shape."""


@dataclass(frozen=True)
class Concat(Node):
    """Maps of one size, joined along their channels."""


@dataclass(frozen=True)
class MaxPool(Node):
    """The maximum over each window.

    Attributes:
        kernel: Side of the window.
        stride: Step of the window.
        padding: Border on each side.
    """

    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True)
class GlobalAveragePool(Node):
    """The mean of each channel, [batch, channels, height, width] to [batch, channels]."""


@dataclass(frozen=True)
class GlobalMaxPool(Node):
    """The maximum of each channel, [batch, channels, height, width] to [batch, channels]."""


@dataclass(frozen=True)
class Affine(Node):
    """A BatchNorm that no layer can take over: factor * x + shift for each column of vectors [batch, columns].

    Attributes:
        factor: Factors, float32 [columns].
        shift: Shifts, float32 [columns].
    """

    factor: Tensor
    shift: Tensor


@dataclass(frozen=True)
class ClusterAffine(Node):
    """Logits scaled and shifted by factors of the nearest centroid, see `edged.models.cluster_affine`.

    Attributes:
        centroids: Centroids, float32 [clusters, columns].
        gain: Factors, of the same shape.
        shift: Summands, of the same shape.
    """

    centroids: Tensor
    gain: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Resize(Node):
    """Nearest-neighbor enlargement by a whole factor.

    Attributes:
        factor: Number of output pixels per input pixel and axis.
    """

    factor: int


@dataclass(frozen=True)
class Relu(Node):
    """max(x, 0)."""


@dataclass(frozen=True)
class LeakyRelu(Node):
    """x for x > 0, slope * x otherwise.

    Attributes:
        slope: Factor of negative values.
    """

    slope: float


@dataclass(frozen=True)
class Silu(Node):
    """x * sigmoid(x)."""


@dataclass(frozen=True)
class HardSwish(Node):
    """x * clip(x / 6 + 1 / 2, 0, 1)."""


@dataclass(frozen=True)
class Gelu(Node):
    """x times the normal distribution's cumulative probability of x."""


@dataclass(frozen=True)
class Tanh(Node):
    """tanh(x)."""


@dataclass(frozen=True)
class Sigmoid(Node):
    """1 / (1 + exp(-x))."""


@dataclass(frozen=True)
class Predictions(Node):
    """The raw outputs of a detector: maps [batch, anchors * outputs, h_i, w_i] as rows [batch, sum of rows, outputs].

    Attributes:
        outputs: Outputs per anchor, 5 + classes.
    """

    outputs: int


Weighted = Conv | Linear
ACTIVATIONS = (Relu, LeakyRelu, Silu, HardSwish, Gelu, Tanh, Sigmoid)


@dataclass(frozen=True)
class Graph:
    """The operations of a network in order of execution.

    Attributes:
        input: Name of the input value.
        channels: Channels of the input.
        nodes: Operations; each reads the input or values of earlier ones.
        output: Name of the value that the network returns.
    """

    input: str
    channels: int
    nodes: tuple[Node, ...]
    output: str

    def readers(self) -> Mapping[str, list[Node]]:
        """Return the nodes that read each value, by its name; an empty list for a value that none reads."""
        found: dict[str, list[Node]] = {name: [] for name in (self.input, *(node.name for node in self.nodes))}
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found

    def producers(self) -> Mapping[str, Node]:
        """Return the node that computes each value, by its name; the input has none."""
        return {node.name: node for node in self.nodes}

    def weighted(self) -> Iterator[Weighted]:
        """Yield the convolutions and linear layers."""
        return (node for node in self.nodes if isinstance(node, Conv | Linear))

    def sides(self, size: int) -> Mapping[str, int]:
        """Return the height of each value, which is its width, for square inputs; 1 for vectors.

        Args:
            size: Height of the input.
        """
        found = {self.input: size}
        for node in self.nodes:
            side = found[node.inputs[0]]
            if isinstance(node, Conv):
                side = (side + 2 * node.padding[0] - node.weight.values.shape[2]) // node.stride[0] + 1
            elif isinstance(node, MaxPool):
                side = (side + 2 * node.padding - node.kernel) // node.stride + 1
            elif isinstance(node, Resize):
                side *= node.factor
            elif isinstance(node, GlobalAveragePool | GlobalMaxPool | Linear | Predictions):
                side = 1
            found[node.name] = side
        return found

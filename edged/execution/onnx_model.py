"""A quantized network as an ONNX model, ready to be written to a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx
from torch import nn

from edged.errors import ArtifactError
from edged.execution.biases import with_representable_biases
from edged.execution.build import build_graph
from edged.execution.graph import Graph
from edged.execution.grids import Grids
from edged.execution.onnx_writer import CPU_DIALECT, OPENVINO_DIALECT, TENSORRT_DIALECT, write_onnx
from edged.execution.placement import Placement, place, place_nothing, place_quantized
from edged.execution.quantization import ActivationQuantization
from edged.execution.tensorrt import place_for_tensorrt
from edged.execution.tensorrt_rules import check_tensorrt
from edged.models.architecture import Architecture
from edged.quant.grid import QuantizedWeight
from edged.spec import InputSpec

TARGETS = ("onnxruntime", "openvino", "tensorrt")
DIALECTS = dict(zip(TARGETS, (CPU_DIALECT, OPENVINO_DIALECT, TENSORRT_DIALECT), strict=True))


def output_of(architecture: Architecture, spec: InputSpec) -> tuple[str, tuple[int, ...]]:
    """Return the name of a network's output, and its shape for one image."""
    plan = architecture.plan
    if plan is None:
        return "logits", (architecture.num_classes,)
    cells = [(spec.size // stride) ** 2 for stride in plan.strides(architecture.in_channels)]
    rows = sum(count * len(level) for count, level in zip(cells, plan.anchors, strict=True))
    return "raw", (rows, plan.outputs_per_anchor)


def onnx_model(
    network: nn.Module,
    quantized: Mapping[str, QuantizedWeight],
    activations: ActivationQuantization | None,
    architecture: Architecture,
    spec: InputSpec,
    *,
    target: str = TARGETS[0],
    batch: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Return a network as an ONNX model that onnx.checker accepts.

    It computes on integers if the activations are quantized, in float otherwise.

    Args:
        network: The network with decoded weights, in eval mode on the CPU. Not modified.
        quantized: Its quantized weights by their names in the state dict.
        activations: Ranges of its activations; None if they are computed in float.
        architecture: Its architecture.
        spec: Its input.
        target: Engine that will compute it, one of TARGETS.
        batch: Images per call; None for any number.
        metadata: Entries of the model's metadata_props.

    Raises:
        ArchitectureError: The network has an operation that the execution graph does not have.
        ArtifactError: The ranges do not fit the network, or its codes do not suit the target.
    """
    placement, grids = _placed(build_graph(network, quantized), activations, target)
    output, shape = output_of(architecture, spec)
    model = write_onnx(
        placement,
        grids,
        spec.size,
        output,
        shape,
        batch=batch,
        metadata=metadata,
        dialect=DIALECTS[target],
    )
    onnx.checker.check_model(model, full_check=True)
    if target == "tensorrt" and (broken := check_tensorrt(model)):
        raise ArtifactError(f"the network cannot be written by TensorRT's rules: {broken[0]}")
    return model


def _placed(graph: Graph, activations: ActivationQuantization | None, target: str) -> tuple[Placement, Grids]:
    """Return the values that the target carries as codes, and their grids."""
    if activations is None:
        return place_nothing(graph), {}
    grids: Grids = activations.grids()
    placement = place_quantized(graph, activations)
    if different := sorted(grids.keys() ^ set(placement.values)):
        raise ArtifactError(f"the range of {different[0]!r} does not fit the network; quantize the checkpoint again")
    if target == "tensorrt":
        placement, grids = place_for_tensorrt(placement, activations)
    if target == "openvino":
        placement, grids = _with_float_activations(placement, activations)
    return with_representable_biases(placement, grids), grids


def _with_float_activations(placement: Placement, activations: ActivationQuantization) -> tuple[Placement, Grids]:
    """Return a placement whose activations compute in float: OpenVINO takes them into the layer before."""
    wanted = place(placement.graph, activations.float_layers, activations.in_float, float_activations=True)
    owners = {name: owner for name, owner in wanted.owners.items() if name in placement.owners}
    grids = activations.grids()
    return dataclasses.replace(wanted, owners=owners), {name: grids[placement.owners[name]] for name in owners.values()}

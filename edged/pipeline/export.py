"""Export of an artifact for other engines: an ONNX model, or a model repository with one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edged.artifacts.reader import Artifact, read_artifact
from edged.artifacts.weights import decoded_state, load_weights
from edged.artifacts.writer import require_absent
from edged.atomic import write_atomic
from edged.errors import ArtifactError, UsageError
from edged.execution.biases import with_representable_biases
from edged.execution.build import build_graph
from edged.execution.graph import Graph
from edged.execution.grids import Grids
from edged.execution.onnx_writer import CPU_DIALECT, TENSORRT_DIALECT, write_onnx
from edged.execution.placement import Placement, place, place_nothing
from edged.execution.tensorrt import place_for_tensorrt
from edged.execution.tensorrt_rules import check_tensorrt
from edged.models.registry import load_model
from edged.pipeline.model_repository import write_repository

TARGETS = ("onnxruntime", "openvino", "tensorrt")
FORMATS = ("onnx", "triton")


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: File of the ONNX model, or folder of the model repository.
        bytes: Size of the ONNX model.
        integer: Whether engines compute on integers.
        output: Name of the output.
        output_shape: Shape of the outputs of one image.
    """

    path: Path
    bytes: int
    integer: bool
    output: str
    output_shape: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "out": str(self.path),
            "bytes": self.bytes,
            "integer": self.integer,
            "output": self.output,
            "output_shape": list(self.output_shape),
        }


def export(
    artifact: str | Path,
    out: str | Path,
    *,
    target: str = TARGETS[0],
    format: str = FORMATS[0],  # noqa: A002  # the option's name
    dynamic_batch: bool = False,
) -> Exported:
    """Write an artifact as a model of another engine.

    The model computes on integers if the activations of the artifact are quantized, in float otherwise. Its weights are
    the artifact's codes, bit for bit.

    Args:
        artifact: Artifact folder.
        out: Path of the ONNX file, or of the model's folder in a model repository; must not exist.
        target: One of TARGETS.
        format: "onnx" for a file, "triton" for a folder with config.pbtxt, which Triton and OpenVINO Model Server take.
        dynamic_batch: Whether a call may have any number of images instead of one.

    Raises:
        ArtifactError: The artifact cannot be read, or its codes do not suit the target.
        UsageError: There is no such target or format.
        StateError: `out` exists or cannot be written.
    """
    for name, value, allowed in (("target", target, TARGETS), ("format", format, FORMATS)):
        if value not in allowed:
            raise UsageError(f"{name} has value {value!r:.80}; choose one of {', '.join(allowed)}")
    source, path = read_artifact(artifact), Path(out)
    require_absent(path)
    output, shape = _output(source)
    model = to_onnx(source, target, dynamic_batch=dynamic_batch)
    data = model.SerializeToString()
    if format == "onnx":
        write_atomic(path, data)
    else:
        write_repository(path, source, data, (output, shape), dynamic_batch=dynamic_batch)
    return Exported(path, len(data), source.activations is not None, output, shape)


def to_onnx(artifact: Artifact, target: str = TARGETS[0], *, dynamic_batch: bool = False) -> onnx.ModelProto:
    """Return an artifact as an ONNX model that onnx.checker accepts.

    Args:
        artifact: The artifact.
        target: One of TARGETS.
        dynamic_batch: Whether a call may have any number of images instead of one.

    Raises:
        ArtifactError: The weights cannot be read, or their codes do not suit the target.
    """
    path = artifact.directory / "weights.safetensors"
    quantized, _ = load_weights(path)
    graph = build_graph(load_model(decoded_state(path), artifact.architecture), quantized)
    placement, grids = _placed(graph, artifact, target)
    output, shape = _output(artifact)
    model = write_onnx(
        placement,
        grids,
        artifact.input.size,
        output,
        shape,
        batch=None if dynamic_batch else 1,
        metadata=_metadata(artifact),
        dialect=TENSORRT_DIALECT if target == "tensorrt" else CPU_DIALECT,
    )
    onnx.checker.check_model(model, full_check=True)
    if target == "tensorrt" and (broken := check_tensorrt(model)):
        raise ArtifactError(f"the network cannot be written by TensorRT's rules: {broken[0]}")
    return model


def _placed(graph: Graph, artifact: Artifact, target: str) -> tuple[Placement, Grids]:
    """Return the values that the target carries as codes, and their grids."""
    activations = artifact.activations
    if activations is None:
        return place_nothing(graph), {}
    placement, grids = place(graph, activations.float_layers), activations.grids()
    if different := sorted(grids.keys() ^ set(placement.values)):
        raise ArtifactError(f"the range of {different[0]!r} does not fit the network; quantize the checkpoint again")
    if target == "tensorrt":
        placement, grids = place_for_tensorrt(placement, activations)
    return with_representable_biases(placement, grids), grids


def _output(artifact: Artifact) -> tuple[str, tuple[int, ...]]:
    """Return the name of the output and its shape for one image."""
    architecture, plan = artifact.architecture, artifact.architecture.plan
    if plan is None:
        return "logits", (architecture.num_classes,)
    cells = [(artifact.input.size // stride) ** 2 for stride in plan.strides(architecture.in_channels)]
    rows = sum(count * len(level) for count, level in zip(cells, plan.anchors, strict=True))
    return "raw", (rows, plan.outputs_per_anchor)


def _metadata(artifact: Artifact) -> dict[str, str]:
    """Return what a client needs to know; `names`, `stride`, `task` and `imgsz` are spelled as Ultralytics does."""
    manifest, plan = artifact.manifest, artifact.architecture.plan
    entries: dict[str, Any] = {
        "task": "classify" if plan is None else "detect",
        "imgsz": [artifact.input.size] * 2,
        "architecture": artifact.architecture.name,
        "input": manifest.input,
        "quantization": manifest.quantization,
        "source_sha256": manifest.source["sha256"],
        "weights_sha256": manifest.weights["sha256"],
        "edged_version": manifest.versions["edged"],
    }
    if plan is not None:
        entries["stride"] = max(plan.strides(artifact.architecture.in_channels))
        entries["anchors"] = plan.to_dict()["anchors"]
    if manifest.classes is not None:
        entries["names"] = str(dict(enumerate(manifest.classes)))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}

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
from edged.errors import UsageError
from edged.execution.onnx_model import TARGETS, onnx_model, output_of
from edged.models.registry import load_model
from edged.pipeline.model_repository import write_repository

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
    output, shape = output_of(source.architecture, source.input)
    model = to_onnx(source, target, dynamic_batch=dynamic_batch)
    data = model.SerializeToString()
    if format == "onnx":
        write_atomic(path, data)
    else:
        write_repository(path, source, data, (output, shape), target=target, dynamic_batch=dynamic_batch)
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
    return _written(artifact, target=target, batch=None if dynamic_batch else 1, metadata=_metadata(artifact))


def to_served_onnx(artifact: Artifact) -> bytes:
    """Return the ONNX model that serves an artifact, made from its codes.

    The same versions of edged and onnx make the same bytes as when the artifact was written.

    Args:
        artifact: The artifact.

    Raises:
        ArtifactError: The weights cannot be read.
    """
    data: bytes = _written(artifact).SerializeToString()
    return data


def _written(artifact: Artifact, **options: Any) -> onnx.ModelProto:
    path = artifact.directory / "weights.safetensors"
    quantized, _ = load_weights(path)
    network = load_model(decoded_state(path), artifact.architecture)
    return onnx_model(network, quantized, artifact.activations, artifact.architecture, artifact.input, **options)


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

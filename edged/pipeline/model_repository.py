"""A folder of a model repository, which Triton and OpenVINO Model Server serve as it is.

NAME/1/model.onnx    the model; 1 is its version
NAME/config.pbtxt    inputs and outputs, read by Triton
NAME/labels.txt      a class a line
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edged.artifacts.reader import Artifact
from edged.atomic import as_state_error, fsync_tree, rename_into_place, temporary_sibling
from edged.execution.onnx_writer import INPUT

MAX_BATCH = 8
_LABELS = "labels.txt"
# Triton takes a GPU where there is one; ONNX Runtime's kernels for CUDA have no integers (microsoft/onnxruntime#24807).
_ON_CPU = "instance_group [ { kind: KIND_CPU } ]"
_ON_TENSORRT = 'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" } ] } }'


def write_repository(
    path: Path,
    artifact: Artifact,
    model: bytes,
    output: tuple[str, tuple[int, ...]],
    *,
    target: str,
    dynamic_batch: bool,
) -> None:
    """Write the folder of a model; it appears when all of it is on the disk. Its repository is made if it is missing.

    Args:
        path: The folder; its name is the model's. It must not exist.
        artifact: The artifact that was exported.
        model: The ONNX model.
        output: Name of the output, and its shape for one image.
        target: Engine that the model is written for, one of `edged.execution.onnx_model.TARGETS`.
        dynamic_batch: Whether the model takes any number of images; Triton then joins requests up to MAX_BATCH images.

    Raises:
        StateError: The folder cannot be written.
    """
    temporary = temporary_sibling(path)
    with as_state_error(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # the repository, for its first model
            temporary.mkdir()
            (temporary / "1").mkdir()
            (temporary / "1" / "model.onnx").write_bytes(model)
            (temporary / "config.pbtxt").write_text(_config(path.name, artifact, output, target, dynamic_batch))
            if (classes := artifact.manifest.classes) is not None:
                (temporary / _LABELS).write_text("".join(f"{' '.join(name.split())}\n" for name in classes))
            fsync_tree(temporary)
            rename_into_place(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _config(
    name: str, artifact: Artifact, output: tuple[str, tuple[int, ...]], target: str, dynamic_batch: bool
) -> str:
    size, channels = artifact.input.size, artifact.input.channels
    batch = () if dynamic_batch else (1,)
    labels = artifact.manifest.task == "classification" and artifact.manifest.classes is not None
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {MAX_BATCH if dynamic_batch else 0}",
        f"input [ {_tensor(INPUT, (*batch, channels, size, size))} ]",
        f"output [ {_tensor(output[0], (*batch, *output[1]), _LABELS if labels else None)} ]",
    ]
    if dynamic_batch:
        lines.append("dynamic_batching { }")
    if target == "tensorrt":
        lines.append(_ON_TENSORRT)
    elif artifact.activations is not None:
        lines.append(_ON_CPU)
    return "\n".join(lines) + "\n"


def _tensor(name: str, dims: tuple[int, ...], labels: str | None = None) -> str:
    more = "" if labels is None else f" label_filename: {json.dumps(labels)}"
    return f"{{ name: {json.dumps(name)} data_type: TYPE_FP32 dims: {list(dims)}{more} }}"

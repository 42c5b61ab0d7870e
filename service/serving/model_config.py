"""The configuration of a model in service, with the names of Triton's ModelConfig. Imports no protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.ipc.options import MAX_BATCH, Batching

_BYTES = "TYPE_STRING"  # the one type that has another name here
# Engines that compute on the processor; others are these with a suffix, or need a GPU.
_ON_CPU = ("onnxruntime", "openvino", "torch")


def model_config(metadata: Mapping[str, Any], batching: Batching, threads: int) -> dict[str, Any]:
    """Return the configuration of a live generation as JSON types.

    A detector's boxes are those of all images in one list, so its tensors have no batch dimension in Triton's sense:
    `max_batch_size` is 0 and `dims` are whole shapes. A classifier's `dims` lack the first dimension, the images.

    Args:
        metadata: Description of the model, as GET /v2/models/{model} has it.
        batching: How the generation gathers requests into batches.
        threads: Threads that it computes with.
    """
    engine = str(metadata["platform"]).removeprefix("edged_")
    per_image = all(output["name"] != "counts" for output in metadata["outputs"])
    config: dict[str, Any] = {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "backend": engine,
        "version_policy": {"specific": {"versions": [int(version) for version in metadata["versions"]]}},
        "max_batch_size": MAX_BATCH if per_image else 0,
        # A request has one of the inputs.
        "input": [{**_tensor(each, per_image), "optional": True} for each in metadata["inputs"]],
        "output": [_tensor(each, per_image) for each in metadata["outputs"]],
        "instance_group": [
            {"name": metadata["name"], "kind": "KIND_CPU" if engine in _ON_CPU else "KIND_GPU", "count": 1}
        ],
        "parameters": {"threads": {"string_value": str(threads)}},
    }
    if batching.max_batch > 1:
        config["dynamic_batching"] = {
            "preferred_batch_size": [batching.max_batch],
            "max_queue_delay_microseconds": round(batching.max_delay_s * 1e6),
        }
    return config


def _tensor(described: Mapping[str, Any], per_image: bool) -> dict[str, Any]:
    shape: Sequence[int] = described["shape"]
    datatype = described["datatype"]
    return {
        "name": described["name"],
        "data_type": _BYTES if datatype == "BYTES" else f"TYPE_{datatype}",
        "dims": list(shape[1:] if per_image else shape),
    }

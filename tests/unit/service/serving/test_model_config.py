"""The configuration of a model, and whether it is one to the protobuf message that Triton's clients bring."""

from __future__ import annotations

from typing import Any

import pytest

from service.ipc.options import Batching
from service.serving.model_config import model_config

CLASSIFIER: dict[str, Any] = {
    "name": "digits",
    "versions": ["3"],
    "platform": "edged_onnxruntime",
    "inputs": [
        {"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]},
        {"name": "pixels", "datatype": "UINT8", "shape": [-1, 3, 8, 8]},
        {"name": "image", "datatype": "BYTES", "shape": [-1, 1], "parameters": {"content_type": "base64"}},
    ],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10], "parameters": {"classes": ["a"]}}],
}
BOXES = [
    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "counts", "datatype": "INT64", "shape": [-1]},
]


def test_a_classifier_has_batches_of_images():
    config = model_config(CLASSIFIER, Batching(), 2)
    assert (config["max_batch_size"], config["version_policy"]) == (128, {"specific": {"versions": [3]}})
    assert [(each["name"], each["data_type"], each["dims"]) for each in config["input"]] == [
        ("input", "TYPE_FP32", [3, 8, 8]),
        ("pixels", "TYPE_UINT8", [3, 8, 8]),
        ("image", "TYPE_STRING", [1]),
    ]
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [10]}]
    assert "dynamic_batching" not in config


def test_a_detector_has_whole_shapes_because_its_boxes_are_those_of_all_images():
    config = model_config({**CLASSIFIER, "outputs": BOXES}, Batching(8, 0.002), 2)
    assert config["max_batch_size"] == 0
    assert [each["dims"] for each in config["input"]] == [[-1, 3, 8, 8], [-1, 3, 8, 8], [-1, 1]]
    assert [each["dims"] for each in config["output"]] == [[-1, 4], [-1]]
    assert config["dynamic_batching"] == {"preferred_batch_size": [8], "max_queue_delay_microseconds": 2000}


@pytest.mark.parametrize(
    ("platform", "kind"),
    [
        ("edged_onnxruntime", "KIND_CPU"),
        ("edged_openvino", "KIND_CPU"),
        ("edged_torch", "KIND_CPU"),
        ("edged_torch_cuda", "KIND_GPU"),
        ("edged_onnxruntime_tensorrt", "KIND_GPU"),
        ("edged_tensorrt", "KIND_GPU"),
    ],
)
def test_the_engine_says_where_it_computes(platform: str, kind: str):
    config = model_config({**CLASSIFIER, "platform": platform}, Batching(), 1)
    assert config["backend"] == platform.removeprefix("edged_")
    assert config["instance_group"] == [{"name": "digits", "kind": kind, "count": 1}]


@pytest.mark.parametrize("outputs", [CLASSIFIER["outputs"], BOXES])
def test_every_name_is_one_of_the_message_that_clients_bring(outputs: list[dict[str, Any]]):
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed")
    from google.protobuf.json_format import ParseDict

    config = model_config({**CLASSIFIER, "outputs": outputs}, Batching(4, 0.001), 2)
    message = ParseDict(config, messages.ModelConfig())
    assert (message.max_batch_size, message.dynamic_batching.max_queue_delay_microseconds) == (
        config["max_batch_size"],
        1000,
    )
    assert [list(each.dims) for each in message.input] == [each["dims"] for each in config["input"]]

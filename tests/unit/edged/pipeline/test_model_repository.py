"""Folders that Triton and OpenVINO Model Server serve; config.pbtxt is read by Triton's own message types."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format

from edged.artifacts.reader import read_artifact
from edged.models.loading import load_checkpoint
from edged.pipeline.export import TARGETS, export
from edged.pipeline.model_repository import MAX_BATCH
from edged.pipeline.quantize import quantize
from edged.spec import Method, QuantSpec, Scheme
from tests.support.artifacts import write_untrained, write_untrained_detector
from tests.support.executions import session
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def messages() -> Any:
    """The module of Triton's messages, without that of its client, which needs gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("write", [write_untrained, write_untrained_detector])
def test_the_config_fits_the_model(tmp_path: Path, messages: Any, write: Any, dynamic: bool) -> None:
    write(tmp_path / "artifact")
    folder = tmp_path / 'shelf "7"'
    result = export(tmp_path / "artifact", folder, format="triton", dynamic_batch=dynamic)
    assert result.bytes == (folder / "1" / "model.onnx").stat().st_size
    config = text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())
    assert (config.name, config.backend) == ('shelf "7"', "onnxruntime")
    assert config.max_batch_size == (MAX_BATCH if dynamic else 0)
    assert config.HasField("dynamic_batching") == dynamic
    served = session(onnx.load(folder / "1" / "model.onnx"))
    for entry, tensor in ((config.input[0], served.get_inputs()[0]), (config.output[0], served.get_outputs()[0])):
        assert (entry.name, entry.data_type) == (tensor.name, messages.TYPE_FP32)
        assert list(entry.dims) == (tensor.shape[1:] if dynamic else tensor.shape)


@pytest.mark.parametrize("bits", [None, 8])
def test_triton_computes_a_model_where_it_can_be_computed(
    task: Task, tmp_path: Path, messages: Any, bits: int | None
) -> None:
    spec = QuantSpec(method=Method.RTN, scheme=Scheme.SYMMETRIC, activation_bits=bits)
    network = load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})
    quantize(network, task.calibration, tmp_path / "artifact", spec, images=48)
    found = {}
    for target in TARGETS:
        export(tmp_path / "artifact", tmp_path / target, format="triton", target=target)
        found[target] = text_format.Parse((tmp_path / target / "config.pbtxt").read_text(), messages.ModelConfig())
    for target in ("onnxruntime", "openvino"):  # the kernels for CUDA have no integers
        kinds = [group.kind for group in found[target].instance_group]
        assert kinds == ([messages.ModelInstanceGroup.KIND_CPU] if bits else [])
        assert not found[target].HasField("optimization")
    (accelerator,) = found["tensorrt"].optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    assert not found["tensorrt"].instance_group


def test_classes_are_labels(tmp_path: Path, messages: Any) -> None:
    write_untrained_detector(tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "boxes", format="triton")
    assert (tmp_path / "boxes" / "labels.txt").read_text() == "red\ngreen\nblue\n"
    config = text_format.Parse((tmp_path / "boxes" / "config.pbtxt").read_text(), messages.ModelConfig())
    assert config.output[0].label_filename == ""  # a row of raw outputs has no class


def test_a_model_without_class_names_has_no_labels(tmp_path: Path) -> None:
    write_untrained(tmp_path / "artifact")
    assert read_artifact(tmp_path / "artifact").manifest.classes is None
    export(tmp_path / "artifact", tmp_path / "digits", format="triton")
    assert sorted(path.name for path in (tmp_path / "digits").rglob("*")) == ["1", "config.pbtxt", "model.onnx"]


def test_a_folder_appears_whole_or_not_at_all(full_disk: Path, tmp_path: Path) -> None:
    write_untrained(tmp_path / "artifact")
    with pytest.raises(Exception, match="cannot write"):
        export(tmp_path / "artifact", full_disk / "digits", format="triton")
    assert not list(full_disk.iterdir())

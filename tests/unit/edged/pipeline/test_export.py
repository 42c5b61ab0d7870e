"""Artifacts as models of other engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from edged.artifacts.engines import open_executor
from edged.artifacts.reader import Artifact, read_artifact
from edged.artifacts.weights import load_weights
from edged.calibration.dataset import build_cache
from edged.errors import ArtifactError, StateError, UsageError
from edged.execution.tensorrt_rules import check_tensorrt
from edged.models.loading import load_checkpoint
from edged.pipeline.export import TARGETS, export, to_onnx, to_served_onnx
from edged.pipeline.quantize import quantize
from edged.spec import InputSpec, Method, QuantSpec, Scheme
from tests.support.executions import relative_error, run, session
from tests.support.tasks import DetectionTask, Task
from tests.support.trained import TEST

SPECS: Mapping[str, QuantSpec] = {
    "classifier": QuantSpec(bits=4, activation_bits=8),
    "eight": QuantSpec(bits=8, activation_bits=8, method=Method.RTN),
    "float": QuantSpec(bits=3, method=Method.RTN),
    "symmetric": QuantSpec(bits=4, activation_bits=8, scheme=Scheme.SYMMETRIC, method=Method.RTN),
    "detector": QuantSpec(bits=4, activation_bits=8, method=Method.RTN),
}


@pytest.fixture(scope="module")
def artifacts(
    task: Task, detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Artifact]:
    root = tmp_path_factory.mktemp("artifacts")
    for name, spec in SPECS.items():
        source = detection_task if name == "detector" else task
        settings = {"size": 64} if name == "detector" else {"size": 8}
        network = load_checkpoint(source.first, input_settings=settings)
        quantize(network, source.calibration, root / name, spec, images=48, cache_root=root / "cache")
    return {name: read_artifact(root / name) for name in SPECS}


def images_of(artifact: Artifact) -> torch.Tensor:
    warmup = artifact.load_warmup()
    assert warmup is not None
    return torch.from_numpy(warmup.images(artifact.input))


@pytest.mark.parametrize("name", ["classifier", "eight", "detector"])
def test_an_artifact_read_back_computes_what_was_evaluated(artifacts: Mapping[str, Artifact], name: str) -> None:
    artifact = artifacts[name]
    warmup = artifact.load_warmup()
    assert warmup is not None
    assert artifact.manifest.activations is not None
    engine = open_executor(artifact, "onnxruntime", warmup.threads)
    assert warmup.compare([engine.run(image[None]) for image in warmup.images(artifact.input)]).identical


@pytest.mark.parametrize("name", SPECS)
def test_the_model_that_serves_follows_from_the_codes(artifacts: Mapping[str, Artifact], name: str) -> None:
    assert to_served_onnx(artifacts[name]) == (artifacts[name].directory / "model.onnx").read_bytes()


@pytest.mark.parametrize("name", SPECS)
def test_onnx_runtime_computes_what_the_artifact_serves(artifacts: Mapping[str, Artifact], name: str) -> None:
    artifact = artifacts[name]
    model = to_onnx(artifact, dynamic_batch=True)
    x = images_of(artifact)
    with torch.inference_mode():
        wanted = artifact.load_model()(x)
    assert relative_error(run(model, x), wanted) < (1e-8 if name == "float" else 0.01)


def test_digits_are_classified_as_well_in_integers(artifacts: Mapping[str, Artifact], task: Task) -> None:
    x, labels = task.digits.tensors(TEST)
    found = run(to_onnx(artifacts["classifier"], dynamic_batch=True), x)
    assert float((found.argmax(1) == labels).float().mean()) > 0.95


@pytest.mark.parametrize("name", SPECS)
def test_the_codes_in_the_file_are_the_artifacts(artifacts: Mapping[str, Artifact], name: str) -> None:
    artifact = artifacts[name]
    tensors = [t for t in to_onnx(artifact).graph.initializer if t.name.endswith(".weight.codes")]
    quantized, _ = load_weights(artifact.directory / "weights.safetensors")
    stored = {(codes.tobytes(), codes.shape) for codes in (numpy_helper.to_array(t).astype(np.int64) for t in tensors)}
    for weight in quantized.values():
        codes = weight.codes.numpy().astype(np.int64).reshape(weight.shape)
        zeros = weight.zero_point.numpy().astype(np.int64).reshape(-1, *(1,) * (codes.ndim - 1))
        assert {(codes.tobytes(), codes.shape), ((codes - zeros).tobytes(), codes.shape)} & stored


def test_weights_of_8_bits_are_symmetric_where_activations_are_quantized(artifacts: Mapping[str, Artifact]) -> None:
    """The file has int8 codes: the artifact's less 128."""
    quantized, _ = load_weights(artifacts["eight"].directory / "weights.safetensors")
    assert {int(zero) for weight in quantized.values() for zero in weight.zero_point} == {128}
    tensors = {t.name: t for t in to_onnx(artifacts["eight"]).graph.initializer}
    stem = tensors["bn1.weight.codes"]
    assert stem.data_type == TensorProto.INT8
    wanted = quantized["conv1.weight"].codes.numpy().astype(np.int64) - 128
    assert np.array_equal(numpy_helper.to_array(stem).reshape(wanted.shape), wanted)


@pytest.mark.parametrize("name", SPECS)
def test_a_file_says_what_it_holds(artifacts: Mapping[str, Artifact], tmp_path: Path, name: str) -> None:
    artifact, path = artifacts[name], tmp_path / "model.onnx"
    result = export(artifact.directory, path).to_dict()
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    of_boxes = name == "detector"
    side = artifact.input.size
    rows = 2 * ((side // 4) ** 2 + (side // 8) ** 2)
    assert result == {
        "out": str(path),
        "bytes": path.stat().st_size,
        "integer": name != "float",
        "output": "raw" if of_boxes else "logits",
        "output_shape": [rows, 8] if of_boxes else [10],
    }
    served = session(model)
    assert served.get_inputs()[0].shape == [1, 3, side, side]
    assert served.get_outputs()[0].shape == [1, *result["output_shape"]]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["task"] == ("detect" if of_boxes else "classify")
    assert metadata["imgsz"] == f"[{side}, {side}]"
    assert json.loads(metadata["input"]) == artifact.manifest.input
    assert json.loads(metadata["quantization"]) == SPECS[name].to_dict()
    assert metadata["source_sha256"] == artifact.manifest.source["sha256"]
    assert metadata.get("stride") == ("8" if of_boxes else None)
    names = ("red", "green", "blue") if of_boxes else tuple("0123456789")
    assert metadata["names"] == str(dict(enumerate(names)))


@pytest.mark.parametrize("name", ["classifier", "detector", "float"])
def test_a_model_for_openvino_computes_activations_in_float(artifacts: Mapping[str, Artifact], name: str) -> None:
    """OpenVINO takes a SiLU into the layer before, unless the value between the two is rounded."""
    artifact = artifacts[name]
    model = to_onnx(artifact, "openvino", dynamic_batch=True)
    producers = {value: node.op_type for node in model.graph.node for value in node.output}
    gates = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    assert {producers[node.input[0]] for node in gates} == ({"Conv"} if name == "detector" else set())
    assert {entry.domain for entry in model.opset_import} == {""}
    x = images_of(artifact)
    with torch.inference_mode():
        wanted = artifact.load_model()(x)
    assert relative_error(run(model, x), wanted) < (1e-8 if name == "float" else 0.01)


@pytest.mark.parametrize("name", ["symmetric", "eight", "float"])
def test_a_model_for_tensorrt_keeps_its_rules_and_computes_the_same(
    artifacts: Mapping[str, Artifact], tmp_path: Path, name: str
) -> None:
    artifact = artifacts[name]
    export(artifact.directory, tmp_path / "m.onnx", target="tensorrt", dynamic_batch=True)
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert check_tensorrt(model) == []
    assert model.opset_import[0].version == 20
    assert {t.data_type for t in model.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT8}
    x = images_of(artifact)
    with torch.inference_mode():
        wanted = artifact.load_model()(x)
    assert relative_error(run(model, x), wanted) < (1e-8 if name == "float" else 0.01)


@pytest.mark.parametrize("name", ["classifier", "detector"])
def test_asymmetric_weights_are_refused_for_tensorrt(
    artifacts: Mapping[str, Artifact], tmp_path: Path, name: str
) -> None:
    with pytest.raises(ArtifactError, match=r"is asymmetric, .* quantize the checkpoint again with --scheme symmetric"):
        export(artifacts[name].directory, tmp_path / "m.onnx", target="tensorrt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("target", "coreml"), ("format", "tflite")])
def test_an_unknown_target_or_format_is_refused(
    artifacts: Mapping[str, Artifact], tmp_path: Path, option: str, value: str
) -> None:
    with pytest.raises(UsageError, match=f"{option} has value '{value}'; choose one of"):
        export(artifacts["float"].directory, tmp_path / "m.onnx", **{option: value})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_what_exists_is_not_replaced(artifacts: Mapping[str, Artifact], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(StateError, match="it already exists"):
        export(artifacts["float"].directory, path)
    assert path.read_text() == "mine"


def test_a_folder_that_is_missing_is_an_error(artifacts: Mapping[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(StateError, match="nowhere"):
        export(artifacts["float"].directory, tmp_path / "nowhere" / "m")


def test_the_first_model_makes_its_repository(artifacts: Mapping[str, Artifact], tmp_path: Path) -> None:
    export(artifacts["float"].directory, tmp_path / "repository" / "m", format="triton")
    assert (tmp_path / "repository" / "m" / "config.pbtxt").is_file()


def test_what_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        export(tmp_path, tmp_path / "m.onnx")


@pytest.mark.parametrize("change", ["missing", "renamed"])
def test_ranges_that_do_not_fit_are_refused(artifacts: Mapping[str, Artifact], tmp_path: Path, change: str) -> None:
    source, damaged = artifacts["classifier"].directory, tmp_path / "damaged"
    damaged.mkdir()
    for file in source.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((damaged / "manifest.json").read_text())
    ends = manifest["activations"]["ranges"].pop("relu")
    if change == "renamed":
        manifest["activations"]["ranges"]["relu_77"] = ends
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="quantize the checkpoint again"):
        export(damaged, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="quantize the checkpoint again"):
        read_artifact(damaged).load_model()


@pytest.mark.slow
def test_a_genuine_resnet20_is_as_accurate_in_integers(real_data: Path, tmp_path: Path) -> None:
    checkpoint, images = real_data / "weights" / "resnet20-12fca82f.th", real_data / "cifar10"
    cache = build_cache(images / "test", tmp_path / "cache", InputSpec(32, 32), limit=4000)  # 0.975 to 0.988 agree
    x, labels = cache.batch(torch.arange(len(cache))), cache.labels_of(torch.arange(len(cache)))
    assert labels is not None
    network = load_checkpoint(checkpoint, input_settings={"size": 32})
    with torch.inference_mode():
        wanted = network.model(x).argmax(1)
    quantize(network, images / "calib", tmp_path / "out", QuantSpec(bits=8, activation_bits=8), images=256)
    artifact = read_artifact(tmp_path / "out")
    for target in TARGETS:
        found = run(to_onnx(artifact, target, dynamic_batch=True), x).argmax(1)
        assert float((found == wanted).float().mean()) > 0.97
        assert float((found == labels).float().mean()) > float((wanted == labels).float().mean()) - 0.015

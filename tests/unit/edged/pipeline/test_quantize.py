"""A checkpoint and a folder of images to an artifact folder, without a daemon."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps

from edged.artifacts.engines import open_executor, open_onnx
from edged.artifacts.manifest import SCHEMA_OF_LEVELS
from edged.artifacts.reader import read_artifact
from edged.artifacts.weights import load_weights
from edged.calibration.dataset import build_cache
from edged.errors import CalibrationError, GateError, StateError, UsageError
from edged.evaluation.gates import Gates
from edged.models.architecture import Architecture
from edged.models.cluster_affine import ClusterAffine
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.export import export
from edged.pipeline.quantize import quantize
from edged.spec import Choice, InputSpec, Levels, Method, QuantSpec, Statistics
from tests.support.executions import relative_error
from tests.support.readouts import fitted
from tests.support.tasks import Task

RTN = QuantSpec(method=Method.RTN, bits=8)


class Listener:
    """Notes the stages that are entered."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield

    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total

    def planned(self, plan: Mapping[str, Any]) -> None:
        assert plan["peak_bytes"] > 0


@pytest.fixture
def network(task: Task) -> LoadedNetwork:
    return load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})


def test_a_checkpoint_becomes_an_artifact(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in network.model.state_dict().items()}
    listener = Listener()
    result = quantize(network, task.calibration, tmp_path / "out", RTN, device="cpu", listener=listener)
    assert [name for name in listener.names if name in ("calibrate", "quantize", "evaluate", "write")] == [
        "calibrate",
        "quantize",
        "evaluate",
        "write",
    ]
    artifact = read_artifact(result.artifact)
    assert artifact.report == result.report
    assert artifact.manifest.source == network.source.to_dict()
    assert artifact.manifest.quantization == RTN.to_dict()
    assert (artifact.manifest.name, artifact.manifest.started_at) == ("", "")
    assert result.report["totals"]["agreement"] > 80
    torch.testing.assert_close(network.model.state_dict(), before, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_path_gives_the_same_weights_as_the_loaded_network(task: Task, tmp_path: Path) -> None:
    first, again = (
        quantize(checkpoint, task.calibration, tmp_path / name, RTN, images=64, cache_root=tmp_path / "cache")
        for checkpoint, name in ((str(task.first), "path"), (load_checkpoint(task.first), "network"))
    )
    assert first.report["layers"] == again.report["layers"]
    digests = {read_artifact(result.artifact).manifest.weights["sha256"] for result in (first, again)}
    assert len(digests) == 1


def test_an_existing_folder_is_refused_before_the_work(task: Task, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="it already exists"):
        quantize(tmp_path / "missing.pt", task.calibration, tmp_path)


def test_a_gate_that_is_not_passed_leaves_nothing(task: Task, network: LoadedNetwork, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"gates\.min_agreement is 100\.1 %"):
        quantize(network, task.calibration, tmp_path / "out", RTN, gates=Gates(min_agreement=100.1))
    assert not list(tmp_path.iterdir())


def test_a_gate_that_needs_labels_is_refused_before_the_work(
    task: Task, network: LoadedNetwork, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    for index in range(40):
        task.digits.png(index, flat / f"{index}.png")
    listener = Listener()
    with pytest.raises(CalibrationError, match=r"gates\.max_drop needs labels"):
        quantize(network, flat, tmp_path / "out", RTN, gates=Gates(max_drop=1.0), listener=listener)
    assert "quantize" not in listener.names


def fitted_checkpoint(architecture: Architecture, task: Task, folder: Path, side: int) -> Path:
    cache = build_cache(task.calibration, folder / "cache", InputSpec(side, side))
    everything = torch.arange(len(cache))
    labels = cache.labels_of(everything)
    assert labels is not None
    torch.save(fitted(architecture, cache.batch(everything), labels).state_dict(), folder / "m.pt")
    return folder / "m.pt"


def test_an_artifact_rebuilds_a_described_head(task: Task, tmp_path: Path) -> None:
    head = ("linear:32", "relu", "batchnorm", "linear:10")
    architecture = Architecture("cifar_resnet20", 10, "cifar", shortcut="pad", head=head)
    path = fitted_checkpoint(architecture, task, tmp_path, 8)
    choice = Choice(head=("linear", "relu", "dropout", "batchnorm", "linear"))
    network = load_checkpoint(path, input_settings={"size": 8, "resize": 8}, choice=choice)
    result = quantize(network, task.calibration, tmp_path / "out", RTN, device="cpu")
    artifact = read_artifact(result.artifact)
    assert artifact.architecture == architecture
    assert {"linear.0", "linear.3"} <= {layer["name"] for layer in result.report["layers"]}
    assert result.report["totals"]["quantized"]["top1"] > 40  # chance is 10
    x = build_cache(task.test, tmp_path / "cache", artifact.input).batch(torch.arange(64))
    agreement = (artifact.load_model()(x).argmax(1) == network.model(x).argmax(1)).float().mean()
    assert agreement > 0.9


@pytest.mark.parametrize("activation_bits", [None, 8])
def test_an_artifact_keeps_the_transformation_of_its_logits_in_every_engine(
    task: Task, network: LoadedNetwork, tmp_path: Path, activation_bits: int | None
) -> None:
    # Nothing else corrects the outputs, so that a transformation helps by much.
    settings = {"statistics": Statistics.NONE, "propagation": 0, "cluster_affine": True}
    spec = QuantSpec(method=Method.RTN, bits=2, activation_bits=activation_bits, **settings)
    result = quantize(network, task.calibration, tmp_path / "out", spec, device="cpu", runtime="onnxruntime")
    artifact = read_artifact(result.artifact)
    model = artifact.load_model()
    x = build_cache(task.test, tmp_path / "cache", artifact.input).batch(torch.arange(32))
    found = model(x)
    engines = [torch.from_numpy(open_executor(artifact, "onnxruntime", 1).run(x.numpy()))]
    exported = export(artifact.directory, tmp_path / "model.onnx", target="openvino", dynamic_batch=True)
    engines.append(torch.from_numpy(open_onnx(exported.path, "onnxruntime", 1).run(x.numpy())))
    for logits in engines:
        assert relative_error(logits, found) < 1e-3
    network_alone = model if activation_bits is None else model.network
    assert isinstance(network_alone.correction, ClusterAffine)
    assert result.report["totals"]["corrected_share"] > 0
    assert not isinstance(network.model.correction, ClusterAffine)  # the full network is not modified


@pytest.mark.slow  # a ResNet-18; the readings themselves are in test_readings.py
def test_an_artifact_rebuilds_the_reading_that_images_chose(task: Task, tmp_path: Path) -> None:
    architecture = Architecture("resnet18", 10, "small", stem_pooling=True)
    path = fitted_checkpoint(architecture, task, tmp_path, 16)
    network = load_checkpoint(path, input_settings={"size": 16, "resize": 16})
    result = quantize(network, task.calibration, tmp_path / "out", RTN, device="cpu")
    taken = result.report["totals"]["checkpoint"]
    assert [entry["taken"] for entry in taken["readings"]["tried"]] == [False, True]
    assert taken["assumptions"] == []
    assert read_artifact(result.artifact).architecture == architecture


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
def test_networks_that_read_alpha_are_quantized_with_images_that_have_it(
    task: Task, tmp_path: Path, mode: str, channels: int
) -> None:
    for path in sorted(task.calibration.rglob("*.png")):
        with Image.open(path) as image:
            made = image.convert(mode)
            made.putalpha(ImageOps.invert(image.convert("L")))
        (tmp_path / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
        made.save(tmp_path / "images" / path.parent.name / path.name)
    values = {"mean": [0.1 * (index + 1) for index in range(channels)], "std": [0.5] * channels}
    spec = InputSpec.from_dict({"size": 8, "resize": 8, **values})
    cache = build_cache(tmp_path / "images", tmp_path / "cache", spec)
    everything = torch.arange(len(cache))
    labels = cache.labels_of(everything)
    assert labels is not None
    architecture = Architecture("cifar_resnet20", 10, "cifar", channels, shortcut="pad")
    torch.save(fitted(architecture, cache.batch(everything), labels).state_dict(), tmp_path / "m.pt")
    with pytest.raises(UsageError, match=f"reads {channels} channels; give one value a channel: input: {{mean"):
        load_checkpoint(tmp_path / "m.pt")
    network = load_checkpoint(tmp_path / "m.pt", input_settings={"size": 8, "resize": 8, **values})
    result = quantize(network, tmp_path / "images", tmp_path / "out", RTN, device="cpu")
    artifact = read_artifact(result.artifact)
    assert (artifact.architecture, artifact.input) == (architecture, spec)
    assert result.report["totals"]["quantized"]["top1"] > 40  # chance is 10
    warmup = artifact.load_warmup()
    assert warmup is not None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_power_levels_are_stored_as_codes_and_computed_in_float_by_every_engine(
    task: Task, network: LoadedNetwork, tmp_path: Path, runtime: str
) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    spec = QuantSpec(method=Method.REQUANT, bits=4, levels=Levels.POWER, activation_bits="auto", propagation=0.0)
    result = quantize(network, task.calibration, tmp_path / "out", spec, device="cpu", runtime=runtime)
    artifact = read_artifact(result.artifact)
    assert (artifact.manifest.schema_version, artifact.activations) == (SCHEMA_OF_LEVELS, None)
    assert (result.report["totals"]["levels"], artifact.manifest.serve) == (
        "power",
        {"engine": runtime, "precision": "float"},
    )
    assert {candidate["precision"] for candidate in result.report["totals"]["candidates"]} == {"float"}
    weights, _ = load_weights(artifact.directory / "weights.safetensors")
    assert not any(weight.is_uniform for weight in weights.values())
    model = artifact.load_model()
    assert all(torch.equal(model.state_dict()[name], weight.decode()) for name, weight in weights.items())
    x = build_cache(task.test, tmp_path / "cache", artifact.input).batch(torch.arange(32))
    found = model(x)
    assert float((found.argmax(1) == network.model(x).argmax(1)).float().mean()) > 0.9
    assert relative_error(torch.from_numpy(open_executor(artifact, runtime, 1).run(x.numpy())), found) < 1e-4


def test_power_levels_are_exported_as_codes_that_engines_decode(
    task: Task, network: LoadedNetwork, tmp_path: Path
) -> None:
    spec = QuantSpec(method=Method.REQUANT, bits=4, levels=Levels.POWER, propagation=0.0)
    uniform = dataclasses.replace(spec, levels=Levels.UNIFORM)
    sizes = []
    for each in (uniform, spec):
        done = quantize(network, task.calibration, tmp_path / each.levels.value, each, device="cpu", runtime="torch")
        exported = export(done.artifact, tmp_path / f"{each.levels.value}.onnx", dynamic_batch=True)
        assert not exported.integer
        sizes.append(exported.bytes)
    assert sizes[1] < 1.4 * sizes[0]
    artifact = read_artifact(tmp_path / "power")
    x = build_cache(task.test, tmp_path / "cache", artifact.input).batch(torch.arange(32))
    expected = artifact.load_model()(x)
    for engine, target in (("onnxruntime", "onnxruntime"), ("onnxruntime", "tensorrt")):
        file = tmp_path / f"{target}.onnx"
        export(artifact.directory, file, target=target, dynamic_batch=True)
        assert relative_error(torch.from_numpy(open_onnx(file, engine, 1).run(x.numpy())), expected) < 1e-4

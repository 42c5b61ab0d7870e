"""The engine of an artifact: what is asked for, else the one that it has a model for."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edged.artifacts.engines import (
    ENGINES,
    engine_of,
    installed_engines,
    needs_exact_kernels,
    open_executor,
    open_onnx,
    openvino_saturates,
)
from edged.artifacts.reader import Artifact, read_artifact
from edged.errors import ArtifactError, DeviceError, UnavailableError
from edged.execution.executors import EXACT, Executor, OnnxExecutor
from edged.execution.processor import processor_saturates
from edged.execution.quantization import ActivationQuantization
from edged.execution.saturation import probe_model
from edged.spec import RUNTIMES
from tests.support.artifacts import write_untrained
from tests.support.fake_gpu import FakeTensorRt
from tests.support.pretended import DEVICE, PretendedDevice
from tests.support.tensorrt import header_of, integer_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_untrained(tmp_path / "artifact")
    return tmp_path / "artifact"


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_both_engines_compute_an_artifact(folder: Path) -> None:
    artifact = read_artifact(folder)
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    expected = open_executor(artifact, "torch", 1).run(images)
    for name in installed_engines():
        executor = open_executor(artifact, name, 1)
        assert executor.name == name
        np.testing.assert_allclose(executor.run(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("engine", "remedy"),
    [("onnxruntime", "`pip install onnxruntime`"), ("openvino", "`pip install openvino`")],
)
def test_an_engine_that_is_not_installed_is_named(
    folder: Path, engine: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, engine, None)  # as if it was not installed
    assert engine not in installed_engines()
    with pytest.raises(UnavailableError, match=f"runtime is {engine}, which is not installed here; install {remedy}"):
        open_executor(read_artifact(folder), engine, 1)


def test_engines_are_those_of_the_config(folder: Path) -> None:
    assert {"auto", *ENGINES} == set(RUNTIMES)


def test_auto_takes_onnx_runtime_where_there_is_a_model(folder: Path) -> None:
    assert engine_of(read_artifact(folder), "auto") == "onnxruntime"
    assert engine_of(read_artifact(folder), "torch") == "torch"
    change(folder, lambda manifest: manifest.pop("onnx"))  # as 0.1.0 wrote it
    old = read_artifact(folder)
    assert engine_of(old, "auto") == "torch"
    with pytest.raises(ArtifactError, match=r"has no model\.onnx, which runtime: onnxruntime computes; drop the check"):
        open_executor(old, engine_of(old, "onnxruntime"), 1)


def test_auto_takes_the_engine_that_judged_if_it_can_compute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def auto(judged: str) -> str:
        change(folder, lambda manifest: manifest.update(serve={"engine": judged, "precision": "float"}))
        return engine_of(read_artifact(folder), "auto")

    monkeypatch.setattr("edged.artifacts.engines.installed_engines", lambda: ("onnxruntime", "openvino", "torch"))
    assert [auto(name) for name in ("openvino", "torch", "none")] == ["openvino", "torch", "onnxruntime"]
    monkeypatch.setattr("edged.artifacts.engines.installed_engines", lambda: ("openvino", "torch"))
    assert [auto(name) for name in ("openvino", "onnxruntime")] == ["openvino", "torch"]
    change(folder, lambda manifest: manifest.pop("onnx"))
    assert auto("openvino") == "torch"


@pytest.mark.parametrize("precision", ["integer", "float"])
def test_only_models_on_integers_have_a_cache(folder: Path, tmp_path: Path, precision: str) -> None:
    pytest.importorskip("openvino")
    ranges = {"bits": 8, "ranges": {}, "float_layers": []}
    change(folder, lambda manifest: manifest.update(activations=ranges))
    change(folder, lambda manifest: manifest.update(serve={"engine": "openvino", "precision": precision}))
    open_executor(read_artifact(folder), "openvino", 1, cache=tmp_path / "engines")
    kept = [path.name for path in tmp_path.glob("engines/*")]
    sha256 = json.loads((folder / "manifest.json").read_text())["onnx"]["sha256"]
    assert len(kept) == (1 if precision == "integer" else 0)
    assert all(name.startswith(f"{sha256[:16]}-openvino-") for name in kept)


def test_a_damaged_or_missing_model_is_named(folder: Path) -> None:
    artifact = read_artifact(folder)
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(
        ArtifactError, match=r"model\.onnx has sha256 \w{16}\.\.\., its manifest says \w{16}\.\.\.; quan"
    ):
        open_executor(artifact, "onnxruntime", 1)
    model.unlink()
    with pytest.raises(
        ArtifactError, match=r"cannot read .*model\.onnx: No such file or directory; quantize the check"
    ):
        open_executor(artifact, "onnxruntime", 1)


def test_torch_computes_on_the_device_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = read_artifact(folder)
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_executor(artifact, "torch", 1, "auto").name == "torch"
    with pytest.raises(DeviceError, match="device has value 'cuda'"):
        open_executor(artifact, "torch", 1, "cuda")
    expected = open_executor(artifact, "torch", 1, "cpu").run(images)
    monkeypatch.setattr("edged.device.choose_device", lambda name: DEVICE)
    with PretendedDevice():
        for device in ("auto", "cuda"):
            engine = open_executor(artifact, "torch", 1, device)
            assert engine.name == f"torch_{DEVICE.type}"
            np.testing.assert_allclose(engine.run(images), expected, rtol=0.02, atol=0.02)
    assert open_executor(artifact, "onnxruntime", 1, "cuda").name == "onnxruntime"


def test_codes_of_activations_are_computed_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = dataclasses.replace(read_artifact(folder), activations=ActivationQuantization(8, {}, ()))
    monkeypatch.setattr(Artifact, "load_model", lambda self: torch.nn.Identity())
    monkeypatch.setattr("edged.device.choose_device", lambda name: torch.device(name if name != "auto" else "cuda"))
    assert open_executor(artifact, "torch", 1, "auto").name == "torch"
    with pytest.raises(DeviceError, match=r"serve\.device is cuda, and .* quantized activations, .*; set quant"):
        open_executor(artifact, "torch", 1, "cuda")


@pytest.fixture
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("edged.artifacts.engines.processor_saturates", lambda: True)
    for found in (needs_exact_kernels, openvino_saturates):
        found.cache_clear()
    yield
    for found in (needs_exact_kernels, openvino_saturates):
        found.cache_clear()


def of_integers(folder: Path, *, wide: bool | None = True, bits: int = 8, precision: str = "integer") -> Artifact:
    """Return an artifact whose manifest says that activations are quantized."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["activations"] = {"bits": 8, "ranges": {}, "float_layers": []}
        manifest["quantization"] |= {"bits": bits, "scheme": "symmetric"}
        manifest["serve"] = {"engine": "onnxruntime", "precision": precision}
        assert manifest["weights"].pop("wide_codes") is False  # nothing is quantized
        if wide is not None:
            manifest["weights"]["wide_codes"] = wide

    change(folder, edit)
    return read_artifact(folder)


def is_exact(executor: Executor) -> bool:
    """Return whether ONNX Runtime was asked for exact kernels."""
    assert isinstance(executor, OnnxExecutor)
    try:
        return bool(executor._session.get_session_options().get_session_config_entry(EXACT) == "1")
    except RuntimeError:  # it has no such entry
        return False


@pytest.mark.usefixtures("without_vnni")
@pytest.mark.parametrize(
    ("wide", "bits", "precision", "expected"),
    [
        (True, 8, "integer", True),
        (False, 8, "integer", False),
        (True, 8, "float", False),
        (None, 8, "integer", True),  # an older artifact, which does not say
        (None, 7, "integer", False),
    ],
)
def test_codes_that_saturate_are_computed_exactly(
    folder: Path, wide: bool | None, bits: int, precision: str, expected: bool
) -> None:
    artifact = of_integers(folder, wide=wide, bits=bits, precision=precision)
    assert is_exact(open_executor(artifact, "onnxruntime", 1)) is expected


@pytest.mark.usefixtures("without_vnni")
def test_a_network_in_float_is_not_computed_exactly(folder: Path) -> None:
    assert not is_exact(open_executor(read_artifact(folder), "onnxruntime", 1))


@pytest.mark.usefixtures("without_vnni")
def test_a_processor_with_vnni_computes_as_fast_as_it_can(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.artifacts.engines.processor_saturates", lambda: False)
    monkeypatch.setattr("edged.artifacts.engines.engine_saturates", lambda load: load(probe_model()).exact)
    assert not is_exact(open_executor(of_integers(folder), "onnxruntime", 1))


@pytest.mark.usefixtures("without_vnni")
def test_what_the_probe_finds_counts_more_than_the_processor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.artifacts.engines.processor_saturates", lambda: False)
    monkeypatch.setattr("edged.artifacts.engines.engine_saturates", lambda load: not load(probe_model()).exact)
    assert is_exact(open_executor(of_integers(folder), "onnxruntime", 1))


@pytest.mark.usefixtures("without_vnni")
def test_an_engine_that_saturates_in_any_case_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.artifacts.engines.engine_saturates", lambda load: True)
    artifact = of_integers(folder)
    with pytest.raises(ArtifactError, match="also in its exact kernels; quantize with 7 bits"):
        open_executor(artifact, "onnxruntime", 1)
    model = (folder / "model.onnx").read_bytes()
    with pytest.raises(ArtifactError, match=r"OpenVINO clips sums of 8-bit products .*, or set runtime: onnxruntime"):
        open_onnx(model, "openvino", 1)


@pytest.mark.skipif("openvino" not in installed_engines(), reason="needs OpenVINO")
@pytest.mark.usefixtures("without_vnni")
def test_openvino_computes_what_does_not_saturate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert openvino_saturates() is processor_saturates()
    monkeypatch.setattr("edged.artifacts.engines.engine_saturates", lambda load: True)
    openvino_saturates.cache_clear()
    assert open_executor(of_integers(folder, wide=False), "openvino", 1).name == "openvino"


@pytest.fixture
def for_tensorrt(folder: Path) -> Artifact:
    """Return an artifact that was judged with TensorRT."""
    path = folder / "model.onnx"
    path.write_bytes(integer_model())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    change(folder, lambda manifest: manifest["onnx"].update(sha256=digest, bytes=path.stat().st_size))
    change(folder, lambda manifest: manifest.update(serve={"engine": "tensorrt", "precision": "integer"}))
    return read_artifact(folder)


@pytest.mark.skipif("tensorrt" in installed_engines(), reason="TensorRT is here")
def test_without_tensorrt_onnx_runtime_computes_what_was_judged_with_it(for_tensorrt: Artifact) -> None:
    assert engine_of(for_tensorrt, "tensorrt") == engine_of(for_tensorrt, "auto") == "onnxruntime"


def test_tensorrt_computes_only_what_was_judged_with_it(
    folder: Path, for_tensorrt: Artifact, fake_tensorrt: FakeTensorRt
) -> None:
    assert engine_of(for_tensorrt, "tensorrt") == engine_of(for_tensorrt, "auto") == "tensorrt"
    assert engine_of(for_tensorrt, "onnxruntime") == "onnxruntime"
    change(folder, lambda manifest: manifest.update(serve={"engine": "onnxruntime", "precision": "integer"}))
    assert engine_of(read_artifact(folder), "tensorrt") == "onnxruntime"


def test_a_stale_engine_is_built_anew_before_the_first_request(
    for_tensorrt: Artifact, tmp_path: Path, fake_tensorrt: FakeTensorRt
) -> None:
    cache = tmp_path / "engines"
    images = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    expected = OnnxExecutor(integer_model(), 1).run(images)
    for version in ("10.3.0", "10.3.0", "10.7.0"):
        fake_tensorrt.use(tensorrt=version)
        engine = open_executor(for_tensorrt, "tensorrt", 1, cache=cache, max_batch=2)
        assert engine.name == "tensorrt"
        np.testing.assert_allclose(engine.run(images), expected, rtol=1e-4, atol=1e-4)
    assert sorted(header_of(plan)["version"] for plan in cache.glob("*/engine.plan")) == ["10.3.0", "10.7.0"]


@pytest.mark.parametrize("fails", ["memory", "kill", "crash", "no folder", "no GPU"])
def test_onnx_runtime_computes_where_the_engine_cannot_be_built(
    for_tensorrt: Artifact,
    tmp_path: Path,
    fake_tensorrt: FakeTensorRt,
    caplog: pytest.LogCaptureFixture,
    fails: str,
) -> None:
    fake_tensorrt.use(**({"gpu": ""} if fails == "no GPU" else {"tensorrt_fails": fails}))
    cache = None if fails == "no folder" else tmp_path / "engines"
    engine = open_executor(for_tensorrt, "tensorrt", 1, cache=cache)
    assert engine.name == "onnxruntime"
    assert engine.run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 7)
    assert "ONNX Runtime computes" in caplog.text

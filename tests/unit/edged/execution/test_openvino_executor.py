"""OpenVINO gives the outputs of the network, computes integer graphs on integers, and reports to no server."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edged.errors import ArtifactError
from edged.execution.engine_cache import EngineCache, store_engine
from edged.execution.executors import OnnxExecutor
from edged.execution.onnx_model import onnx_model
from edged.execution.openvino_executor import OpenVinoExecutor, import_openvino
from edged.models.registry import Architecture
from edged.spec import InputSpec
from tests.support import executions

pytest.importorskip("openvino", reason="needs openvino; `pip install openvino`")

SPEC = InputSpec(32, 32)


def in_float() -> tuple[torch.nn.Module, bytes]:
    network = executions.network("option A")
    architecture = Architecture("cifar_resnet20", 7, stem="cifar", shortcut="pad")
    data: bytes = onnx_model(network, {}, None, architecture, SPEC).SerializeToString()
    return network, data


def on_integers(name: str, bits: int) -> tuple[bytes, np.ndarray]:
    executed = executions.executed(name, bits)
    return executed.onnx().SerializeToString(), executed.images.numpy()


@pytest.mark.parametrize("count", [1, 5])
def test_it_gives_the_outputs_of_the_network(count: int) -> None:
    network, model = in_float()
    x = executions.images(network, count).numpy()
    before = x.copy()
    with torch.inference_mode():
        expected = network(torch.from_numpy(x)).numpy()
    engine = OpenVinoExecutor(model, 2)
    assert (engine.name, engine.threads) == ("openvino", 2)
    np.testing.assert_allclose(engine.run(x), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(engine.run(np.asfortranarray(x)), expected, rtol=1e-4, atol=1e-4)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("bits", [4, 7])
@pytest.mark.parametrize("name", ["option A", "yolov5"])
def test_weighted_layers_compute_on_integers(name: str, bits: int) -> None:
    model, _ = on_integers(name, bits)
    layers = executions.executed(name, bits).activations
    precisions: Counter[str] = Counter()
    for node in OpenVinoExecutor(model, 1)._request.get_compiled_model().get_runtime_model().get_ops():
        info = node.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in ("Convolution", "FullyConnected"):
            precisions[info["runtimePrecision"].astype(str)] += 1
    weighted = len(executions.executed(name, bits).quantized)
    assert precisions["u8"] >= weighted - len(layers.float_layers) - 1
    assert precisions["f32"] <= len(layers.float_layers)


@pytest.mark.parametrize("bits", [4, 7])
def test_integers_are_those_of_onnx_runtime(bits: int) -> None:
    model, images = on_integers("focus", bits)  # few layers, so that a code that is rounded otherwise does not spread
    np.testing.assert_allclose(
        OpenVinoExecutor(model, 1).run(images), OnnxExecutor(model, 1).run(images), rtol=1e-5, atol=1e-5
    )


def test_its_integers_are_as_close_to_the_network_as_those_of_onnx_runtime() -> None:
    model, images = on_integers("option A", 7)
    with torch.inference_mode():
        wanted = executions.network("option A")(torch.from_numpy(images))
    errors = [
        executions.relative_error(torch.from_numpy(engine.run(images)), wanted)
        for engine in (OpenVinoExecutor(model, 1), OnnxExecutor(model, 1))
    ]
    assert errors[0] <= 1.5 * errors[1]


def test_an_image_has_the_same_outputs_in_any_batch() -> None:
    model, images = on_integers("yolov5", 7)
    engine = OpenVinoExecutor(model, 2)
    together = engine.run(images)
    for image, outputs in zip(images, together, strict=True):
        assert np.array_equal(engine.run(image[None])[0], outputs)


class Compiling:
    """Counts how often OpenVINO compiles a model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        core = import_openvino().Core
        compile_model = core.compile_model

        def counted(*arguments: Any) -> Any:
            self.times += 1
            return compile_model(*arguments)

        monkeypatch.setattr(core, "compile_model", counted)


def test_a_compiled_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = on_integers("focus", 7)
    compiling, cache = Compiling(monkeypatch), EngineCache(tmp_path, "ab" * 32)
    expected = OpenVinoExecutor(model, 1, cache).run(images)
    (kept,) = tmp_path.iterdir()
    assert np.array_equal(OpenVinoExecutor(model, 1, cache).run(images), expected)
    assert compiling.times == 1
    OpenVinoExecutor(model, 2, cache)  # with other options
    OpenVinoExecutor(model, 1, EngineCache(tmp_path, "cd" * 32))  # of another model
    OpenVinoExecutor(model, 1)
    assert compiling.times == 4
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(import_openvino(), "__version__", "another")
    OpenVinoExecutor(model, 1, cache)
    assert compiling.times == 5
    assert kept.exists()


@pytest.mark.parametrize("damage", ["cut off", "not OpenVINO's", "unreadable"])
def test_a_damaged_compiled_model_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    model, images = on_integers("focus", 7)
    compiling, cache = Compiling(monkeypatch), EngineCache(tmp_path, "ab" * 32)
    expected = OpenVinoExecutor(model, 1, cache).run(images)
    (kept,) = tmp_path.iterdir()
    if damage == "cut off":
        kept.write_bytes(kept.read_bytes()[:1000])
    elif damage == "not OpenVINO's":
        store_engine(kept, b"no compiled model")
    else:
        kept.unlink()
        kept.mkdir()
    assert np.array_equal(OpenVinoExecutor(model, 1, cache).run(images), expected)
    assert compiling.times == 2
    assert "the model is compiled again" in caplog.text
    OpenVinoExecutor(model, 1, cache)
    assert compiling.times == (3 if damage == "unreadable" else 2)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"OpenVINO cannot load .*model\.onnx: .*; quantize the checkpoint again"):
        OpenVinoExecutor(path, 1)
    with pytest.raises(ArtifactError, match="OpenVINO cannot load the model: "):
        OpenVinoExecutor(b"no model", 1)


def test_it_needs_neither_torch_nor_onnx_runtime_and_reports_to_no_server(tmp_path: Path) -> None:
    _, model = in_float()
    (tmp_path / "model.onnx").write_bytes(model)
    code = """
import sys
from pathlib import Path
from typing import Any
import numpy as np
from edged.execution.openvino_executor import OpenVinoExecutor
assert OpenVinoExecutor(Path(sys.argv[1]), 1).run(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 7)
assert not {"torch", "onnx", "onnxruntime", "openvino_telemetry"} & sys.modules.keys()
assert "openvino.tools.ovc" not in sys.modules  # its import sends an event; another module may still import it
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path / "model.onnx")], check=True)

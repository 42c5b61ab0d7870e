"""The names of edged that benchmarks replace from outside, which no import of theirs checks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from benchmarks.quantization.quantize import PARTS
from benchmarks.serving.daemon import ALTERED
from edged.artifacts import engines
from service.inference import main as generation_child
from service.ipc import frames
from service.serving.model_server import ModelServer
from tests.support.repository import ROOT


def test_parts_that_benchmarks_quantize_times_exist() -> None:
    for owner, name, _ in PARTS:
        assert callable(getattr(owner, name)), name


def test_names_that_altered_daemons_replace_exist() -> None:
    assert generation_child.open_executor is engines.open_executor
    assert callable(frames.write_blocking)
    assert callable(ModelServer.retire)


def test_processes_that_benchmarks_recognize_by_module_exist() -> None:
    for name in ("service.inference.main", "service.inference.fork_server", "service.worker.main", "service.cli.main"):
        assert importlib.util.find_spec(name) is not None, name


EMPTY = """
from types import SimpleNamespace
from edged.errors import ArtifactError
from service.inference import main
assert main.open_executor.__name__ == "open_empty"
without_model = SimpleNamespace(manifest=SimpleNamespace(onnx=None), directory="gen/1")
try:
    main.open_executor(without_model, "onnxruntime", 1, "cpu", None, ("cpu",), max_batch=1)
except ArtifactError as error:
    print(error)
"""


def test_an_empty_daemon_replaces_the_engine_of_its_generations() -> None:
    environment = os.environ | {"EDGED_ALTERED": "empty", "PYTHONPATH": os.pathsep.join([str(ALTERED), str(ROOT)])}
    command = [sys.executable, "-c", EMPTY, "service.inference.fork_server"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("gen/1 has no model.onnx")  # from the function that it replaces


BARE = """
import numpy as np
from edged.spec import InputSpec
from service.inference import main, requests
from service.ipc.messages import Body
assert main.open_executor.__name__ == "open_empty"
request = requests.parse_request(Body(b"no image", 0), InputSpec(8, 8))
assert request.images.shape == (1, 3, 8, 8) and not request.images.any()
header = b'{"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 1, 1], "data": [1, 2, 3]}]}'
request = requests.parse_request(Body(header), InputSpec(1, 1))
assert request.images.shape == (1, 3, 1, 1) and not request.images.any()
print("zeros")
"""


def test_a_bare_daemon_does_not_prepare_images() -> None:
    environment = os.environ | {"EDGED_ALTERED": "bare", "PYTHONPATH": os.pathsep.join([str(ALTERED), str(ROOT)])}
    command = [sys.executable, "-c", BARE, "service.inference.fork_server"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "zeros\n"

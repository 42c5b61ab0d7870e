"""The names of edged that benchmarks replace from outside, which no import of theirs checks."""

from __future__ import annotations

import importlib.util

from benchmarks.quantization.quantize import PARTS
from edged.artifacts.reader import Artifact
from service.ipc import frames
from service.serving.model_server import ModelServer


def test_parts_that_benchmarks_quantize_times_exist() -> None:
    for owner, name, _ in PARTS:
        assert callable(getattr(owner, name)), name


def test_names_that_altered_daemons_replace_exist() -> None:
    assert callable(Artifact.load_model)
    assert callable(frames.write_blocking)
    assert callable(ModelServer.retire)


def test_processes_that_benchmarks_recognize_by_module_exist() -> None:
    for name in ("service.inference.main", "service.inference.fork_server", "service.worker.main", "service.cli.main"):
        assert importlib.util.find_spec(name) is not None, name

"""The engine of an artifact: what is asked for, else the one that it has a model for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.artifacts.engines import engine_of, open_executor
from edged.artifacts.reader import read_artifact
from edged.errors import ArtifactError
from tests.support.artifacts import write_untrained


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
    first, second = (open_executor(artifact, name, 1) for name in ("onnxruntime", "torch"))
    assert (first.name, second.name) == ("onnxruntime", "torch")
    np.testing.assert_allclose(first.run(images), second.run(images), rtol=1e-4, atol=1e-4)


def test_auto_takes_onnx_runtime_where_there_is_a_model(folder: Path) -> None:
    assert engine_of(read_artifact(folder), "auto") == "onnxruntime"
    assert engine_of(read_artifact(folder), "torch") == "torch"
    change(folder, lambda manifest: manifest.pop("onnx"))  # as 0.1.0 wrote it
    old = read_artifact(folder)
    assert engine_of(old, "auto") == "torch"
    with pytest.raises(ArtifactError, match=r"has no model\.onnx, which runtime: onnxruntime computes; drop the check"):
        open_executor(old, engine_of(old, "onnxruntime"), 1)


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

"""Which ways to serve a network come into question, and how the report shows them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edged.artifacts.engines import installed_engines
from edged.calibration.dataset import build_cache
from edged.compress import Compressed, compress
from edged.errors import MemoryLimitError, UnavailableError
from edged.models.loading import load_checkpoint
from edged.pipeline.candidates import Candidate, candidates_of, settled_spec, within_memory
from edged.pipeline.evaluation import Evaluation
from edged.spec import Method, QuantSpec
from tests.support.tasks import Task

BOTH = QuantSpec(method=Method.RTN, activation_bits="auto")
INTEGERS = replace(BOTH, activation_bits=8)
FLOATS = replace(BOTH, activation_bits=None)


@pytest.fixture(scope="module")
def compressed(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Compressed:
    network = load_checkpoint(task.first, input_settings={"size": 8, "resize": 8})
    cache = build_cache(task.calibration, tmp_path_factory.mktemp("cache"), network.input, limit=40)
    return compress(network.model, cache, BOTH)


@pytest.mark.parametrize(
    ("spec", "runtime", "expected"),
    [
        (BOTH, "onnxruntime", ["onnxruntime integer", "onnxruntime float"]),
        (BOTH, "torch", ["torch float"]),
        (INTEGERS, "onnxruntime", ["onnxruntime integer"]),
        (INTEGERS, "torch", ["torch integer"]),
        (FLOATS, "onnxruntime", ["onnxruntime float"]),
        (FLOATS, "torch", ["torch float"]),
    ],
)
def test_an_engine_that_is_named_is_the_only_one(
    compressed: Compressed, spec: QuantSpec, runtime: str, expected: list[str]
) -> None:
    activations = None if spec.activation_bits is None else compressed.activations
    found = candidates_of(replace(compressed, activations=activations), spec, runtime)
    assert [f"{each.engine} {each.precision}" for each in found] == expected


def test_auto_takes_all_engines_that_are_installed(compressed: Compressed) -> None:
    found = [(each.engine, each.precision) for each in candidates_of(compressed, BOTH, "auto")]
    assert {engine for engine, _ in found} == set(installed_engines())
    assert ("torch", "integer") not in found  # torch only stands for integers
    integers = [(each.engine, each.precision) for each in candidates_of(compressed, INTEGERS, "auto")]
    assert integers == [pair for pair in found if pair[1] == "integer"]


@pytest.mark.parametrize("spec", [BOTH, INTEGERS, FLOATS])
def test_auto_is_float_where_only_torch_serves(spec: QuantSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled_spec(spec, "onnxruntime") == settled_spec(spec, "auto") == spec
    assert settled_spec(spec, "torch") == (FLOATS if spec == BOTH else spec)
    monkeypatch.setattr("edged.pipeline.candidates.installed_engines", lambda: ("torch",))
    assert settled_spec(spec, "auto") == settled_spec(spec, "torch")


def test_activations_stay_in_float_where_memory_lacks(caplog: pytest.LogCaptureFixture) -> None:
    def attempt(spec: QuantSpec) -> int | str | None:
        if spec.quantizes_activations:
            raise MemoryLimitError("800 MiB is too little")
        return spec.activation_bits

    assert within_memory(attempt, BOTH) == (None, FLOATS)
    assert "no room to quantize them: 800 MiB is too little" in caplog.text
    with pytest.raises(MemoryLimitError):
        within_memory(attempt, INTEGERS)


def test_an_engine_that_is_missing_is_named_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.artifacts.engines.installed_engines", lambda: ("onnxruntime", "torch"))
    with pytest.raises(UnavailableError, match="runtime is openvino, which is not installed here"):
        settled_spec(BOTH, "openvino")


def test_an_engine_that_is_missing_is_named(compressed: Compressed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.pipeline.candidates.installed_engines", lambda: ("torch",))
    monkeypatch.setattr("edged.artifacts.engines.installed_engines", lambda: ("torch",))
    with pytest.raises(UnavailableError, match="runtime is onnxruntime, which is not installed here; install"):
        candidates_of(compressed, BOTH, "onnxruntime")
    assert [each.engine for each in candidates_of(compressed, INTEGERS, "auto")] == ["torch"]


def test_what_the_report_says_of_a_candidate() -> None:
    candidate = Candidate("onnxruntime", "float", ms=1.23456, memory_bytes=7)
    totals = {"task": "detection", "agreement": 90.0, "quantized": {"map50_95": 30.0}, "drop": {"map50_95": 0.5}}
    assert not candidate.passes
    candidate.evaluation = Evaluation(totals)
    assert candidate.passes
    expected = {"engine": "onnxruntime", "precision": "float", "in_float": [], "ms": 1.235, "agreement": 90.0}
    expected |= {"silu": "integer", "accuracy": 30.0, "drop": 0.5, "memory_bytes": 7, "chosen": True, "refused": None}
    assert candidate.to_dict(chosen=True) == expected
    candidate.refuse("too slow")
    assert not candidate.passes
    assert candidate.to_dict(chosen=False)["refused"] == "too slow"
    bare = Candidate("torch", "float").to_dict(chosen=False)
    assert {bare[key] for key in ("ms", "agreement", "accuracy", "drop", "memory_bytes")} == {None}

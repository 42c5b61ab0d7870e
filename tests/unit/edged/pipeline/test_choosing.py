"""The fastest candidate that passes the gates serves, and the report says why the others do not."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from edged.artifacts.engines import open_executor
from edged.artifacts.reader import read_artifact
from edged.calibration.dataset import ImageCache, build_cache
from edged.compress import Compressed, compress
from edged.errors import ArchitectureError, ArtifactError
from edged.evaluation.gates import Gates
from edged.execution.tensorrt_engine import BuildLimits
from edged.execution.tensorrt_rules import check_tensorrt
from edged.models.loading import LoadedNetwork, load_checkpoint
from edged.pipeline.choosing import Judging, Served, Serving, choose_or_repeat, choose_served
from edged.pipeline.engine import Building, Engines, executor_of
from edged.pipeline.evaluation import Labels, held_out_labels
from edged.pipeline.quantize import write_quantized
from edged.pipeline.timing import Rest
from edged.spec import DetectionSpec, Method, QuantSpec, Scheme
from tests.support.fake_gpu import FakeTensorRt
from tests.support.outliers import with_clipped_inputs, write_outlier
from tests.support.progress import NotedProgress
from tests.support.tasks import DetectionTask, Task

BOTH = QuantSpec(method=Method.RTN, bits=8, activation_bits="auto")
INTEGERS = replace(BOTH, activation_bits=8)
SIZE = {"size": 8, "resize": 8}
ORT = Serving("onnxruntime", 1, clock=time.perf_counter)
ANY = replace(ORT, runtime="auto")


class Model:
    """A quantized network and its images."""

    def __init__(self, checkpoint: Path, images: Path, folder: Path, **size: int) -> None:
        self.network: LoadedNetwork = load_checkpoint(checkpoint, input_settings=size)
        self.cache: ImageCache = build_cache(images, folder, self.network.input, limit=80)
        self.compressed: Compressed = compress(self.network.model, self.cache, BOTH)
        self.labels: Labels = held_out_labels(self.cache, self.network.architecture)

    def choose(self, gates: Gates, serving: Serving, spec: QuantSpec = BOTH) -> Served:
        judging = Judging(self.labels, DetectionSpec(), gates)
        return choose_served(self.compressed, self.network, spec, judging, serving)


@pytest.fixture(scope="module")
def model(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(task.first, task.calibration, tmp_path_factory.mktemp("plain"), **SIZE)


@pytest.fixture(scope="module")
def outlier(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("outlier")
    write_outlier(task.first, folder / "outlier.pt")
    return Model(folder / "outlier.pt", task.calibration, folder, **SIZE)


def times(monkeypatch: pytest.MonkeyPatch, *milliseconds: float) -> None:
    """Have candidates take these times, in the order in which they are listed."""

    def measured(runs: list[Any], _: object, rest: object) -> list[float]:
        assert len(runs) == len(milliseconds)
        return [each / 1000 for each in milliseconds]

    monkeypatch.setattr("edged.pipeline.choosing.median_seconds", measured)


@pytest.mark.parametrize(("milliseconds", "expected"), [((1, 2), "integer"), ((2, 1), "float"), ((1.01, 1), "integer")])
def test_the_fastest_one_serves(
    model: Model, monkeypatch: pytest.MonkeyPatch, milliseconds: tuple[float, float], expected: str
) -> None:
    times(monkeypatch, *milliseconds)
    served = model.choose(Gates(), ORT)
    assert served.serve == {"engine": "onnxruntime", "precision": expected}
    assert [each["precision"] for each in served.candidates if each["chosen"]] == [expected]
    assert [each["ms"] for each in served.candidates] == list(milliseconds)
    # Both were compared: the report shows them side by side.
    assert all(each["agreement"] > 90 for each in served.candidates)
    assert {each["refused"] for each in served.candidates} == {None}
    assert served.evaluation.totals["agreement"] == next(e["agreement"] for e in served.candidates if e["chosen"])
    engine = Engines(model.compressed, model.network, 1).load("onnxruntime", expected)
    assert torch.equal(served.network.logits, engine.logits)


def test_the_choice_reports_its_progress(model: Model, outlier: Model) -> None:
    plain = NotedProgress()
    judging = Judging(model.labels, DetectionSpec(), Gates())
    choose_served(model.compressed, model.network, BOTH, judging, ORT, plain)
    assert plain.steps == {"engines": [(1, 2), (2, 2)], "time": [], "judge": [(2, 2)]}
    kept = NotedProgress()
    judging = Judging(outlier.labels, DetectionSpec(), Gates(min_agreement=90.0))
    choose_or_repeat(
        [outlier.compressed], lambda spec: outlier.compressed, outlier.network, INTEGERS, judging, ORT, kept
    )
    assert list(kept.steps)[:5] == ["engines", "time", "judge", "rank", "keep"]
    assert kept.steps["rank"][-1][0] == kept.steps["rank"][-1][1]
    assert kept.steps["keep"]


def test_times_are_measured_in_the_context_of_the_caller(model: Model) -> None:
    seen: list[str] = []

    @contextmanager
    def measuring() -> Iterator[Rest]:
        seen.append("begin")
        yield lambda _: seen.append("rest")
        seen.append("end")

    def clock() -> float:
        seen.append("time")
        return time.perf_counter()

    model.choose(Gates(), replace(ANY, clock=clock, measuring=measuring))
    assert (seen[0], set(seen[1:-1]), seen[-1]) == ("begin", {"time", "rest"}, "end")


def test_without_a_clock_the_first_one_serves(model: Model) -> None:
    served = model.choose(Gates(), replace(ANY, clock=None))
    assert served.serve == {"engine": "onnxruntime", "precision": "integer"}
    assert {each["ms"] for each in served.candidates} == {None}


def test_times_and_memory_are_measured(model: Model) -> None:
    served = model.choose(Gates(), ANY)
    assert all(each["ms"] > 0 for each in served.candidates)
    assert next(each for each in served.candidates if each["engine"] == "torch")["memory_bytes"] > 1e6
    assert served.network.precision == served.serve["precision"]
    assert executor_of(served.network).threads == 1


def test_memory_for_writing_a_model_is_none_of_its_engine(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    resident, write = [1 << 30], Engines._written

    def written(engines: Engines, numbers: Any) -> Any:
        resident[0] += 1 << 28
        return write(engines, numbers)

    monkeypatch.setattr(Engines, "_written", written)
    monkeypatch.setattr("edged.pipeline.choosing.resident_bytes", lambda: resident[0])
    served = model.choose(Gates(), replace(ORT, memory_limit=1 << 40))
    assert [each["memory_bytes"] for each in served.candidates] == [0, 0]


def test_floats_serve_where_integers_fail_a_gate(outlier: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes were chosen for rounded activations, which do not suit floats here, so they are chosen once more."""
    monkeypatch.setattr("edged.pipeline.choosing.median_seconds", lambda runs, _, rest: [0.001] * len(runs))
    asked: list[QuantSpec] = []

    def quantize(spec: QuantSpec) -> Compressed:
        asked.append(spec)
        return compress(outlier.network.model, outlier.cache, spec)

    judging = Judging(outlier.labels, DetectionSpec(), Gates(min_agreement=90))
    quantized = [outlier.compressed]
    served = choose_or_repeat(quantized, quantize, outlier.network, BOTH, judging, ORT)
    assert quantized == []
    assert asked == [replace(BOTH, activation_bits=None)]
    *before, again = served.candidates
    assert [each["precision"] for each in served.candidates] == ["integer", "float", "float"]
    assert all("gates.min_agreement is 90 %" in each["refused"] for each in before)
    assert [each["chosen"] for each in served.candidates] == [False, False, True]
    assert before[0]["agreement"] < 90 <= again["agreement"]
    assert served.serve == {"engine": "onnxruntime", "precision": "float"}
    assert served.passes


def test_no_second_try_without_need(model: Model, outlier: Model) -> None:
    def quantize(_: QuantSpec) -> Compressed:
        raise AssertionError("quantized again")

    judging = Judging(model.labels, DetectionSpec(), Gates())
    assert choose_or_repeat([model.compressed], quantize, model.network, BOTH, judging, ORT).passes
    judging = Judging(outlier.labels, DetectionSpec(), Gates())
    assert not choose_or_repeat([outlier.compressed], quantize, outlier.network, INTEGERS, judging, ORT).passes


def test_floats_with_the_codes_of_integers(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, 2, 1)
    network = model.choose(Gates(), ORT).network
    # The ranges stay: another engine may want them.
    assert network.activations is not None
    assert network.served_activations is None


def test_integers_only(outlier: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, 1)
    served = outlier.choose(Gates(min_agreement=90), ORT, INTEGERS)
    assert [each["chosen"] for each in served.candidates] == [False]
    assert served.evaluation.totals["agreement"] < 90


def test_layers_are_kept_in_float_until_the_gates_hold(model: Model, tmp_path: Path) -> None:
    damaged = copy.copy(model)
    damaged.compressed = with_clipped_inputs(model.compressed, "layer1.1.conv1", "layer2.0.conv1")
    served = damaged.choose(Gates(min_agreement=95), ORT, INTEGERS)
    failed, kept = served.candidates
    assert (failed["precision"], failed["in_float"], failed["chosen"]) == ("integer", [], False)
    assert failed["agreement"] < 95 <= kept["agreement"]
    assert "gates.min_agreement is 95 %" in failed["refused"]
    assert (kept["precision"], kept["chosen"], kept["refused"]) == ("integer", True, None)
    assert 0 < len(kept["in_float"]) <= 2
    assert {*kept["in_float"]} <= {"layer1.1.conv1", "layer2.0.conv1"}
    assert kept["ms"] > 0
    assert kept["memory_bytes"] >= 0
    assert served.serve == {"engine": "onnxruntime", "precision": "integer"}
    write_quantized(tmp_path / "out", model.network, served, INTEGERS, model.labels, DetectionSpec())
    artifact = read_artifact(tmp_path / "out")
    assert artifact.activations is not None
    assert list(artifact.activations.in_float) == kept["in_float"]
    images = next(model.cache.batches(model.cache.held_out, 8)).numpy()
    outputs = open_executor(artifact, "onnxruntime", 1).run(images)
    assert (outputs == executor_of(served.network).run(images)).all()
    error = abs(open_executor(artifact, "torch", 1).run(images) - outputs)
    assert float(error.max()) < 0.05 * float(abs(outputs).max())


@pytest.mark.parametrize(("milliseconds", "precision"), [((1, 5), "integer"), ((2, 1), "float")])
def test_layers_kept_in_float_compete_with_floats(
    model: Model, monkeypatch: pytest.MonkeyPatch, milliseconds: tuple[float, float], precision: str
) -> None:
    """Without a need, no layers are kept: floats are faster than all integers are."""
    rounds = iter([list(milliseconds), [3, 5]])
    monkeypatch.setattr(
        "edged.pipeline.choosing.median_seconds", lambda runs, _, rest: [ms / 1000 for ms in next(rounds)]
    )
    damaged = copy.copy(model)
    damaged.compressed = with_clipped_inputs(model.compressed, "layer1.1.conv1", "layer2.0.conv1")
    served = damaged.choose(Gates(min_agreement=95), ORT)
    assert served.serve["precision"] == precision
    kept = [each for each in served.candidates if each["in_float"]]
    assert len(kept) == (precision == "integer")
    assert [each["chosen"] for each in served.candidates].count(True) == 1


def test_no_layers_are_kept_where_half_of_them_do_not_do(outlier: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.pipeline.choosing.median_seconds", lambda runs, _, rest: [0.001] * len(runs))
    served = outlier.choose(Gates(min_agreement=100.1), ORT, INTEGERS)
    assert [(each["in_float"], each["chosen"]) for each in served.candidates] == [([], False)]
    assert not served.passes


def test_a_slower_engine_is_compared_only_where_the_faster_one_fails(
    model: Model, outlier: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.pipeline.candidates.installed_engines", lambda: ("onnxruntime", "torch"))
    times(monkeypatch, 1, 2, 3)
    integer, in_float, slow = model.choose(Gates(), ANY).candidates
    assert integer["chosen"]
    assert (slow["agreement"], slow["refused"], slow["chosen"]) == (None, None, False)
    integer, in_float, slow = outlier.choose(Gates(min_agreement=100.1), ANY).candidates
    assert all("gates.min_agreement" in each["refused"] for each in (integer, in_float, slow))


def test_where_memory_lacks_the_engine_serves_unmeasured(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edged.pipeline.candidates.installed_engines", lambda: ("onnxruntime", "torch"))
    monkeypatch.setattr("edged.pipeline.choosing.SMALL_BYTES", 0)
    served = model.choose(Gates(), replace(ANY, memory_limit=1 << 20))
    integer, in_float, torch_float = served.candidates
    assert integer["refused"].startswith("no room: loading it takes")
    assert torch_float["refused"].startswith("it takes more memory than onnxruntime")
    assert (in_float["chosen"], in_float["ms"]) == (True, None)
    assert in_float["agreement"] > 90
    assert served.serve == {"engine": "onnxruntime", "precision": "float"}
    assert served.network.onnx is not None
    # Integers that are asked for have nothing to take their place.
    only = model.choose(Gates(), replace(ANY, memory_limit=1 << 20), INTEGERS)
    assert only.serve == {"engine": "onnxruntime", "precision": "integer"}


@pytest.mark.parametrize("spec", [BOTH, INTEGERS])
def test_an_engine_that_is_only_compared_must_fit_a_limit(
    model: Model, monkeypatch: pytest.MonkeyPatch, spec: QuantSpec
) -> None:
    monkeypatch.setattr("edged.pipeline.candidates.installed_engines", lambda: ("onnxruntime", "openvino", "torch"))
    served = model.choose(Gates(), replace(ANY, memory_limit=1 << 20), spec)
    refused = {each["engine"] for each in served.candidates if (each["refused"] or "").startswith("no room")}
    assert refused == {"openvino"}
    assert {each["engine"] for each in served.candidates if each["ms"] is not None} == (
        {"onnxruntime", "torch"} if spec == BOTH else {"onnxruntime"}
    )
    assert served.serve["engine"] != "openvino"


def test_an_engine_that_cannot_load_is_passed_over(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArtifactError("ONNX Runtime cannot load the model: no memory")

    monkeypatch.setattr("edged.pipeline.candidates.installed_engines", lambda: ("onnxruntime", "torch"))
    monkeypatch.setattr("edged.pipeline.engine.open_onnx", fail)
    served = model.choose(Gates(), ANY)
    assert served.serve == {"engine": "torch", "precision": "float"}
    assert [each["refused"] for each in served.candidates[:2]] == ["ONNX Runtime cannot load the model: no memory"] * 2
    with pytest.raises(ArtifactError, match="no memory"):
        model.choose(Gates(), ORT)


def test_a_head_that_only_torch_computes(task: Task, tmp_path: Path) -> None:
    network = load_checkpoint(task.first, input_settings=SIZE)
    cache = build_cache(task.calibration, tmp_path, network.input, limit=40)
    classes = network.model.linear.out_features
    network.model.linear = torch.nn.Sequential(network.model.linear, torch.nn.ELU(), torch.nn.Linear(classes, classes))
    network.model.eval()
    with pytest.raises(ArchitectureError):
        compress(network.model, cache, INTEGERS)
    compressed = compress(network.model, cache, BOTH)
    assert compressed.activations is None
    judging = Judging(Labels(), DetectionSpec(), Gates())
    served = choose_served(compressed, network, BOTH, judging, ANY)
    assert served.serve == {"engine": "torch", "precision": "float"}
    with pytest.raises(ArchitectureError):
        choose_served(compressed, network, BOTH, judging, ORT)


def test_a_detector(detection_task: DetectionTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(detection_task.first, detection_task.calibration, tmp_path, size=64)
    times(monkeypatch, 2, 1, 3)
    served = model.choose(Gates(), ORT)
    _, integer, in_float = served.candidates
    assert [each["silu"] for each in served.candidates] == ["float", "integer", "integer"]
    assert integer["chosen"]
    assert served.network.activations is not None
    assert served.network.activations.silu == "integer"
    assert min(integer["accuracy"], in_float["accuracy"]) > 0
    assert abs(in_float["drop"]) < 5
    totals = served.evaluation.totals
    assert integer["accuracy"] == totals["quantized"]["map50_95"]
    assert served.evaluation.boxes is not None
    # Of two that take about the same time, the one that costs less accuracy serves.
    times(monkeypatch, 1.01, 1, 3)
    served = model.choose(Gates(), ORT)
    assert served.candidates[0]["chosen"]
    assert served.network.activations is not None
    assert served.network.activations.silu == "float"
    assert served.network.onnx is not None
    assert b"QuickGelu" in served.network.onnx


@pytest.fixture(scope="module")
def symmetric(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Model:
    made = Model(task.first, task.calibration, tmp_path_factory.mktemp("symmetric"), **SIZE)
    made.compressed = compress(made.network.model, made.cache, replace(BOTH, bits=6, scheme=Scheme.SYMMETRIC))
    return made


def tensorrt(folder: Path, runtime: str = "tensorrt", deadline_s: float = 600.0) -> Serving:
    building = Building(folder, BuildLimits(deadline_s=deadline_s))
    return Serving(runtime, 1, clock=time.perf_counter, building=building)


def shown(served: Served) -> list[tuple[str, str, bool]]:
    return [(each["engine"], each["precision"], each["chosen"]) for each in served.candidates]


def test_an_engine_of_tensorrt_is_built_and_judged_before_it_serves(
    symmetric: Model, tmp_path: Path, fake_tensorrt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    times(monkeypatch, 1, 2)
    served = symmetric.choose(Gates(), tensorrt(tmp_path))
    assert shown(served) == [("tensorrt", "integer", True), ("tensorrt", "float", False)]
    assert served.serve == {"engine": "tensorrt", "precision": "integer"}
    assert check_tensorrt(onnx.load_from_string(served.network.onnx or b"")) == []
    assert len(list(tmp_path.glob("*/engine.plan"))) == 2


def test_auto_takes_tensorrt_where_it_is_the_fastest(
    symmetric: Model, tmp_path: Path, fake_tensorrt: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edged.pipeline.candidates.installed_engines", lambda: ("onnxruntime", "tensorrt"))
    times(monkeypatch, 2, 1, 3, 4)
    served = symmetric.choose(Gates(), tensorrt(tmp_path, "auto"))
    assert ("tensorrt", "integer", True) in shown(served)
    assert ("onnxruntime", "integer", False) in shown(served)


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("memory", "OutOfMemory"),
        ("kill", "the process that builds was killed, most likely for lack of memory"),
        ("nothing", "Could not find any implementation"),
        ("hang", "did not build the engine within 2 s; another engine serves"),
    ],
)
def test_onnx_runtime_serves_where_no_engine_can_be_built_and_the_report_says_why(
    symmetric: Model, tmp_path: Path, fake_tensorrt: FakeTensorRt, fails: str, reason: str
) -> None:
    fake_tensorrt.use(tensorrt_fails=fails)
    serving = tensorrt(tmp_path, deadline_s=2) if fails == "hang" else tensorrt(tmp_path)  # others fail by themselves
    served = symmetric.choose(Gates(), serving, replace(INTEGERS, bits=6))
    assert shown(served) == [("tensorrt", "integer", False), ("onnxruntime", "integer", True)]
    assert reason in served.candidates[0]["refused"]
    assert served.serve == {"engine": "onnxruntime", "precision": "integer"}
    assert check_tensorrt(onnx.load_from_string(served.network.onnx or b"")) != []  # the model of CPUs

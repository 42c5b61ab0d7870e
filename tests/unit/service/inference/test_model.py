"""Replies to requests that are computed together: each is the same as if computed alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edged.artifacts.engines import open_executor
from edged.artifacts.reader import read_artifact
from edged.artifacts.warmup import Warmup
from edged.errors import GateError, MemoryLimitError
from edged.execution.executors import HALF_TOLERANCE, Executor
from edged.execution.quantization import ActivationQuantization
from edged.spec import InputSpec
from service.inference.model import ServedModel
from service.inference.requests import Request
from service.inference.responses import float_output, format_response
from service.ipc.messages import Body, Reply
from tests.support import scenes
from tests.support.artifacts import write_untrained, write_untrained_detector
from tests.support.trained import INPUT


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "torch"])
def runtime(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> ServedModel:
    folder = tmp_path_factory.mktemp("classifier") / "artifact"
    write_untrained(folder)
    return opened(folder, "digits", 8, runtime)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> ServedModel:
    folder = tmp_path_factory.mktemp("detector") / "artifact"
    write_untrained_detector(folder)
    return opened(folder, "shapes", 8, runtime)


def opened(folder: Path, model: str, max_batch: int, runtime: str) -> ServedModel:
    artifact = read_artifact(folder)
    return ServedModel(artifact, open_executor(artifact, runtime, 2), model, "7", max_batch)


class Watched:
    """An engine that shows the batches which it gets, and refuses those of more than `limit` images."""

    def __init__(self, engine: Executor, limit: int = 1000) -> None:
        self.name, self.threads, self.tolerance, self.seen = engine.name, engine.threads, engine.tolerance, list[int]()
        self._engine, self._limit = engine, limit

    def run(self, images: Any) -> Any:
        self.seen.append(len(images))
        if len(images) > self._limit:
            raise RuntimeError("not enough memory")
        return self._engine.run(images)


def tensor_request(spec: InputSpec, images: int, seed: int, **more: Any) -> Body:
    values = np.random.default_rng(seed).random((images, spec.channels, spec.size, spec.size), dtype=np.float32)
    return request_of(values, **more)


def request_of(values: np.ndarray, **more: Any) -> Body:
    tensor = {"name": "input", "datatype": "FP32", "shape": values.shape}
    tensor |= {"parameters": {"binary_data_size": values.nbytes}}
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return Body(text + values.tobytes(), len(text))


def together(served: ServedModel, bodies: list[Body]) -> list[Reply]:
    """Prepare and compute as Server does, without its threads."""
    prepared = [served.prepare(body) for body in bodies]
    computed = iter(served.answer_together([each for each in prepared if isinstance(each, Request)]))
    return [each if isinstance(each, Reply) else next(computed) for each in prepared]


def answer_to(served: ServedModel, body: Body, reference: Body | None = None) -> Reply:
    request = served.prepare(body, reference)
    return request if isinstance(request, Reply) else served.answer_together([request])[0]


def assert_same(answer: Reply, alone: Reply, tolerance: float = 1e-4) -> None:
    assert (answer.status, alone.status) == (200, 200)
    got, expected = json.loads(answer.body.content), json.loads(alone.body.content)
    for ours, theirs in zip(got.pop("outputs"), expected.pop("outputs"), strict=True):
        values, wanted = ours.pop("data"), theirs.pop("data")
        assert ours == theirs
        assert values == (wanted if ours["datatype"] == "BYTES" else pytest.approx(wanted, rel=1e-4, abs=tolerance))
    assert got == expected


def test_logits_are_those_of_each_request(classifier: ServedModel) -> None:
    bodies = [tensor_request(INPUT, images, seed, id=f"r{seed}") for seed, images in enumerate((1, 3, 1, 2))]
    answers = together(classifier, bodies)
    for body, answer in zip(bodies, answers, strict=True):
        assert_same(answer, answer_to(classifier, body))
    shapes = [json.loads(answer.body.content)["outputs"][0]["shape"] for answer in answers]
    assert shapes == [[1, 10], [3, 10], [1, 10], [2, 10]]
    assert [json.loads(answer.body.content)["id"] for answer in answers] == ["r0", "r1", "r2", "r3"]


def test_boxes_are_those_of_each_request_with_its_own_thresholds(detector: ServedModel) -> None:
    wanted = [{"name": "boxes"}, {"name": "names"}, {"name": "counts"}, {"name": "raw"}]
    bodies = [
        tensor_request(scenes.INPUT, 1, 1, outputs=wanted, parameters={"confidence": 0.25}),
        tensor_request(scenes.INPUT, 2, 2, outputs=wanted, parameters={"confidence": 0.2}),
        tensor_request(scenes.INPUT, 1, 3, parameters={"confidence": 0.2, "max_detections": 3}),
    ]
    answers = together(detector, bodies)
    for body, answer in zip(bodies, answers, strict=True):
        assert_same(answer, answer_to(detector, body), 1e-3)
    counts = [json.loads(answer.body.content)["outputs"][-1]["data"] for answer in answers]
    assert counts[2] == [3]  # so that there was something to compare


def test_an_invalid_request_gets_an_error_and_the_others_their_replies(
    classifier: ServedModel, detector: ServedModel, runtime: str
) -> None:
    overflow = request_of(np.full((1, 3, 8, 8), 3e38, np.float32))  # finite, but not what comes of it
    good = [tensor_request(INPUT, 1, seed) for seed in range(3)]
    bodies = [good[0], Body(b"{}"), good[1], overflow, tensor_request(scenes.INPUT, 1, 0), good[2]]
    answers = together(classifier, bodies)
    overflown = 200 if runtime == "openvino" else 400  # its ReLU makes 0 of NaN
    assert [answer.status for answer in answers] == [200, 400, 200, overflown, 400, 200]
    assert overflown == 200 or b"data holds values as large as 3e+38, for which" in answers[3].body.content
    for place, body in ((0, good[0]), (2, good[1]), (5, good[2])):
        assert_same(answers[place], answer_to(classifier, body))

    bad = tensor_request(scenes.INPUT, 1, 0, parameters={"confidence": 2})
    fine = tensor_request(scenes.INPUT, 1, 0)
    assert isinstance(detector.prepare(bad), Reply)  # before anything is computed
    assert [answer.status for answer in together(detector, [bad, fine])] == [400, 200]


def test_outputs_that_are_not_finite_for_an_image_are_a_fault_of_the_model(
    classifier: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "_run", lambda images: np.full((len(images), 4), np.nan, np.float32))
    answer = answer_to(classifier, tensor_request(INPUT, 1, 0))
    assert (answer.status, b"output holds NaN or infinity" in answer.body.content) == (500, True)
    answer = answer_to(classifier, request_of(np.full((1, 3, 8, 8), 1e5, np.float32)))
    assert (answer.status, b"values as large as 1e+05" in answer.body.content) == (400, True)


def test_requests_of_a_batch_that_fails_are_computed_one_by_one(
    classifier: ServedModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [tensor_request(INPUT, 1, seed) for seed in range(3)]
    alone = [answer_to(classifier, body) for body in bodies]

    monkeypatch.setattr(classifier, "_executor", Watched(classifier._executor, limit=1))
    answers = together(classifier, bodies)
    for answer, expected in zip(answers, alone, strict=True):
        assert_same(answer, expected)
    assert "a batch of 3 requests failed" in caplog.text


def test_warming_up_computes_the_largest_batch(classifier: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(classifier._executor)
    monkeypatch.setattr(classifier, "_executor", watched)
    classifier.warm_batches()
    assert watched.seen == [2, 3, 4, 5, 6, 7, 8]


class Exhausted:
    """An engine on a GPU whose memory is full."""

    name, threads, tolerance = "torch_cuda", 1, HALF_TOLERANCE

    def run(self, images: Any) -> Any:
        raise MemoryLimitError("the GPU ran out of memory for requests; free its memory")


def test_a_full_gpu_fails_the_request_with_its_remedy_and_not_the_model(
    classifier: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [tensor_request(INPUT, 1, 0), tensor_request(INPUT, 2, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "_executor", Exhausted())
        for answer in together(classifier, bodies):
            assert answer.status == 503
            assert json.loads(answer.body.content) == {
                "error": "the GPU ran out of memory for requests; free its memory"
            }
    assert [answer.status for answer in together(classifier, bodies)] == [200, 200]


def compared(served: ServedModel, body: Body, rival: Reply) -> tuple[int, int]:
    answer = answer_to(served, body, rival.body)
    assert answer.status == 200, answer.body.content
    told = json.loads(answer.body.content)
    return told["agreed"], told["compared"]


@pytest.mark.parametrize("binary", [set[str](), {"logits"}], ids=["JSON", "binary"])
def test_outputs_are_compared_with_a_reference_reply(classifier: ServedModel, binary: set[str]) -> None:
    body = tensor_request(INPUT, 16, 3)
    values = np.array(json.loads(answer_to(classifier, body).body.content)["outputs"][0]["data"], np.float32)
    values = values.reshape(16, 10)
    for changed in (0, 5, 16):
        values[:changed] = -values[:changed]  # no longer the same class at the top
        rival = format_response([float_output("logits", values)], "digits", "8", None, binary)
        assert compared(classifier, body, Reply(200, rival)) == (16 - changed, 16)
        values[:changed] = -values[:changed]


def test_boxes_are_compared_with_a_reference_reply(detector: ServedModel) -> None:
    usual = tensor_request(scenes.INPUT, 2, 1, parameters={"confidence": 0.25})
    boxes = sum(json.loads(answer_to(detector, usual).body.content)["outputs"][-1]["data"])
    assert compared(detector, usual, answer_to(detector, usual)) == (2 * boxes, 2 * boxes)
    assert boxes > 0
    only = tensor_request(scenes.INPUT, 2, 1, outputs=[{"name": "raw"}])
    assert compared(detector, only, answer_to(detector, only)) == (0, 0)  # the client asked for no boxes


def test_an_invalid_reference_reply_is_an_internal_error(classifier: ServedModel) -> None:
    assert answer_to(classifier, tensor_request(INPUT, 1, 0), Body(b"{}")).status == 500


@pytest.mark.slow
def test_a_real_resnet_gives_the_same_logits(real_data: Path, tmp_path: Path, runtime: str) -> None:
    from edged.models.checkpoint import read_checkpoint
    from edged.models.registry import recognize
    from tests.support.artifacts import write

    state = read_checkpoint(real_data / "weights" / "resnet20-12fca82f.th").state
    architecture = recognize(state)
    tensors = {name: value.clone() for name, value in state.items()}
    write(tmp_path / "artifact", tensors, architecture, InputSpec(32, 32))
    served = opened(tmp_path / "artifact", "cifar", 32, runtime)
    files = sorted((real_data / "cifar10" / "test").rglob("*.*"))[::250][:32]
    bodies = [Body(file.read_bytes(), 0) for file in files]
    alone = [logits(answer_to(served, body)) for body in bodies]
    batched = [logits(answer) for answer in together(served, bodies)]
    assert len(bodies) == 32
    np.testing.assert_allclose(batched, alone, rtol=1e-4, atol=1e-4)
    assert len({int(row.argmax()) for row in alone}) > 3  # images of several classes
    assert np.isfinite(alone).all()


def logits(answer: Reply) -> Any:
    (output,) = json.loads(answer.body.content)["outputs"]
    return np.array(output["data"], np.float32)


@pytest.mark.parametrize("integers", [False, True])
def test_integers_of_another_engine_than_the_judged_one_may_round_otherwise(tmp_path: Path, integers: bool) -> None:
    write_untrained(tmp_path / "artifact")
    artifact = read_artifact(tmp_path / "artifact")
    engine = open_executor(artifact, "onnxruntime", 1)
    activations = ActivationQuantization(8, {}) if integers else None
    served = ServedModel(dataclasses.replace(artifact, activations=activations), engine, "digits", "7")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8), np.uint8)
    outputs = np.concatenate([engine.run(image[None]) for image in Warmup(pixels, pixels, "", 1).images(INPUT)])

    def passes(error: float, judged_in: str | None) -> bool:
        try:
            served.warm(Warmup(pixels, np.float32(1 + error) * outputs, "ab", 1, judged_in))
        except GateError:
            return False
        return True

    assert passes(0.05, "openvino") is integers
    assert not passes(0.05, "onnxruntime")
    assert not passes(0.05, None)
    assert not passes(0.5, "openvino")
    assert passes(0.01, "torch_cuda")  # where floats were computed in float16
    assert not passes(0.01, None)

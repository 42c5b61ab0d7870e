"""Answers that a person can use: names and scores, forms and pictures, from the real daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edged.artifacts.store import ModelStore
from tests.support.artifacts import write_untrained, write_untrained_detector
from tests.support.daemon import Daemon

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http], of the extra 'test', is not installed")

NAMES = [f"digit {number}" for number in range(10)]
IMAGES = np.random.default_rng(3).standard_normal((2, 3, 8, 8), np.float32)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that finds published models, as after a restart."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "images").mkdir()
    (folder / "names.txt").write_text("\n".join(NAMES))
    labels: dict[str, Any] = {"digits": "names.txt", "shapes": ["Kreis", "Quadrat", "Dreieck"], "misnamed": ["a", "b"]}
    models = [
        {"name": name, "calibration": {"dir": "images"}, "labels": labels[name]}
        for name in ("digits", "shapes", "misnamed")
    ]
    daemon = Daemon(folder, folder / "images", models=models)
    store = ModelStore(daemon.state / "models")
    for name, write in (
        ("digits", write_untrained),
        ("shapes", write_untrained_detector),
        ("misnamed", write_untrained),
    ):
        write(daemon.state / name)
        store.switch(name, store.publish(name, daemon.state / name))
    try:
        yield daemon.start()
    finally:
        daemon.close()


def infer(daemon: Daemon, **body: Any) -> dict[str, Any]:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(IMAGES.shape), "data": IMAGES.ravel().tolist()}
    response = daemon.post("/v2/models/digits/infer", json={"inputs": [tensor], **body})
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def probabilities(logits: list[float]) -> np.ndarray:
    powers = np.exp(np.array(logits).reshape(2, 10))
    return powers / powers.sum(1, keepdims=True)


def test_a_classifier_answers_with_names_and_scores_where_they_are_asked_for(daemon: Daemon) -> None:
    plain = infer(daemon)
    assert list(plain) == ["logits"]
    expected = probabilities(plain["logits"])
    named = infer(daemon, parameters={"top_k": 3})
    assert list(named) == ["logits", "labels", "scores", "class_ids"]
    order = np.argsort(-expected, axis=1)[:, :3]
    assert named["class_ids"] == order.ravel().tolist()
    assert named["labels"] == [NAMES[number] for number in order.ravel()]
    assert named["scores"] == pytest.approx(np.take_along_axis(expected, order, 1).ravel(), rel=1e-5)
    assert list(infer(daemon, outputs=[{"name": "labels"}])) == ["labels"]


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_classes(daemon: Daemon, binary: bool) -> None:
    with triton.InferenceServerClient(daemon.status()["address"].removeprefix("http://")) as client:
        given = triton.InferInput("input", list(IMAGES.shape), "FP32").set_data_from_numpy(IMAGES)
        asked = [triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)]
        logits = client.infer("digits", [given]).as_numpy("logits")
        classes = client.infer("digits", [given], outputs=asked).as_numpy("logits")
    assert classes.shape == (2, 3)
    for row, values in zip(classes, logits, strict=True):
        for text, number in zip(row, np.argsort(-values), strict=False):
            value, index, name = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(index), name) == (number, NAMES[number])
            assert float(value) == pytest.approx(values[number], abs=1e-6)


def test_names_of_the_config_are_described_and_misfits_are_logged(daemon: Daemon) -> None:
    def classes(model: str, output: int) -> Any:
        return daemon.get(f"/v2/models/{model}").json()["outputs"][output].get("parameters", {}).get("classes")

    assert classes("digits", 0) == NAMES
    assert classes("shapes", 2) == ["Kreis", "Quadrat", "Dreieck"]
    assert classes("misnamed", 0) is None
    assert "model misnamed generation 1: labels of the model has 2 names, and this generation has 10 classes" in (
        daemon.log.read_text()
    )


def test_the_errors_name_the_number(daemon: Daemon) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(IMAGES.shape), "data": IMAGES.ravel().tolist()}
    response = daemon.post(
        "/v2/models/digits/infer", content=json.dumps({"inputs": [tensor], "parameters": {"top_k": 0}})
    )
    assert response.status_code == 400
    assert response.json()["error"] == "parameter top_k has value 0; send a whole number of at least 1"

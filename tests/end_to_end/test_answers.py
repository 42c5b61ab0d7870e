"""Answers that a person can use: names and scores, forms and pictures, from the real daemon."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from edged.artifacts.store import ModelStore
from tests.support.artifacts import write_untrained, write_untrained_detector
from tests.support.daemon import Daemon, children, eventually
from tests.support.repository import ROOT

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http], of the extra 'test', is not installed")

NAMES = [f"digit {number}" for number in range(10)]
IMAGES = np.random.default_rng(3).standard_normal((2, 3, 8, 8), np.float32)
PHOTO = io.BytesIO()
Image.fromarray(np.random.default_rng(5).integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(PHOTO, "PNG")
FILE = PHOTO.getvalue()


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


def outputs(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def test_an_image_file_is_a_request_and_its_answer_is_short(daemon: Daemon) -> None:
    def send(query: str, **headers: str) -> dict[str, Any]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return outputs(daemon.post(f"/v2/models/digits/infer{query}", content=FILE, headers=named))

    short = send("", content_type="image/png")
    assert list(short) == ["labels", "scores", "class_ids"]
    assert len(short["labels"]) == 5
    assert sorted(short["scores"], reverse=True) == short["scores"]
    # The protocol's raw binary request is answered as it always was.
    plain = send("", inference_header_content_length="0", content_type="image/png")
    assert list(plain) == ["logits"]
    assert short["class_ids"] == np.argsort(-np.array(plain["logits"]))[:5].tolist()
    assert send("?top_k=2", content_type="image/jpeg")["labels"] == short["labels"][:2]  # the bytes tell the format
    assert send("?outputs=logits,labels", content_type="image/png") == plain | {"labels": short["labels"]}
    assert list(send("?top_k=2", inference_header_content_length="0")) == ["logits", "labels", "scores", "class_ids"]
    (texts,) = send("?classification=1", content_type="image/png").values()
    assert texts == [f"{max(plain['logits']):f}:{short['class_ids'][0]}:{short['labels'][0]}"]


def test_parameters_in_the_address_count_for_every_request(daemon: Daemon) -> None:
    def count(query: str, **options: Any) -> int:
        (found,) = outputs(daemon.post(f"/v2/models/shapes/infer{query}", **options))["counts"]
        return int(found)

    raw = {"content": FILE, "headers": {"Inference-Header-Content-Length": "0"}}
    for options in (raw, {"content": FILE, "headers": {"Content-Type": "image/png"}}, {"files": {"image": FILE}}):
        assert count("?confidence=0&max_detections=3", **options) == 3
        assert count("?confidence=1", **options) == 0
    for query, message in (
        ("?confidnce=0.5", "parameter 'confidnce' is unknown; did you mean 'confidence'? known: confidence, iou, max_"),
        ("?confidence=2", "parameter confidence has value 2"),
        ("?top_k=3", "parameter 'top_k' is unknown; known: confidence, iou"),
    ):
        response = daemon.post(f"/v2/models/shapes/infer{query}", **raw)
        assert (response.status_code, response.json()["error"][: len(message)]) == (400, message)
    assert daemon.post(f"/v2/models/shapes/infer?{'a' * 5000}", **raw).status_code == 414


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_forms(daemon: Daemon) -> None:
    (daemon.folder / "photo.png").write_bytes(FILE)

    def curl(*arguments: str, model: str = "digits") -> dict[str, Any]:
        address = f"{daemon.status()['address']}/v2/models/{model}/infer"
        command = ["curl", "--silent", "--show-error", address, *arguments]
        found: dict[str, Any] = json.loads(
            subprocess.run(command, cwd=daemon.folder, check=True, capture_output=True).stdout
        )
        return found

    one = curl("-F", "image=@photo.png")
    assert [(each["name"], each["shape"]) for each in one["outputs"]] == [
        *(("labels", [1, 5]), ("scores", [1, 5]), ("class_ids", [1, 5]))
    ]
    assert one == curl("-H", "Content-Type: image/png", "--data-binary", "@photo.png")
    several = curl("-F", "image=@photo.png", "-F", "image=@photo.png", "-F", "top_k=2")
    assert several["outputs"][0]["data"] == 2 * one["outputs"][0]["data"][:2]
    (counts,) = [each for each in curl("-F", "image=@photo.png", model="shapes")["outputs"] if each["name"] == "counts"]
    assert counts["shape"] == [1]
    assert curl("-F", "photo=@photo.png")["error"] == "field 'photo' has a file; send images in the field 'image'"
    error = curl("-H", "Content-Type: multipart/form-data", "--data-binary", "@photo.png")["error"]
    assert "without a boundary" in error


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_detectors_answer_can_be_a_picture(daemon: Daemon, kind: str) -> None:
    query = "?confidence=0&max_detections=1"
    found = outputs(daemon.post(f"/v2/models/shapes/infer{query}", files={"image": FILE}))
    left, top, right, bottom = found["boxes"]
    response = daemon.post(
        f"/v2/models/shapes/infer{query}",
        content=FILE,
        headers={"Content-Type": "image/png", "Accept": f"image/{kind}"},
    )
    assert (response.status_code, response.headers["content-type"]) == (200, f"image/{kind}")
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.format, picture.size) == (kind.upper(), (400, 300))
    changed = np.abs(np.asarray(picture, int) - np.asarray(Image.open(PHOTO), int)).sum(2)
    edge = changed[min(299, round(bottom)), round(left) : round(right) + 1]
    assert (edge > 0).mean() > 0.9  # the outline has one color, the noise below any
    if kind == "png":
        inside = changed[round((top + bottom) / 2), round((left + right) / 2)]
        assert inside == 0 or bottom - top < 30


def test_what_cannot_be_a_picture_is_refused(daemon: Daemon) -> None:
    for model, accept, message in (
        ("digits", "image/jpeg", "Accept has value 'image/jpeg'; a classifier's answer has no boxes to draw"),
        ("shapes", "image/webp", "Accept has value 'image/webp'; choose image/jpeg, image/png or application/json"),
    ):
        headers = {"Content-Type": "image/png", "Accept": accept}
        response = daemon.post(f"/v2/models/{model}/infer", content=FILE, headers=headers)
        assert response.status_code == 406
        assert response.json()["error"].startswith(message)
    headers = {"Content-Type": "image/png", "Accept": "image/jpeg, application/json;q=0.5"}
    assert outputs(daemon.post("/v2/models/digits/infer", content=FILE, headers=headers))["labels"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_of_the_page_work(daemon: Daemon, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "http.md").read_text().split("## Asking with a photo\n")[1].split("In Python, with")[0]
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    commands = "\n".join(lines).replace("localhost:8080", daemon.status()["address"])
    commands = commands.replace("models/NAME/", "models/digits/").replace("models/shelf/", "models/shapes/")
    for name in ("photo", "one", "two"):
        (tmp_path / f"{name}.jpg").write_bytes(FILE)
    done = subprocess.run(
        ["bash", "-euc", commands.replace("curl -s ", "curl -sS --fail-with-body ")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    found, rest = [], done.stdout
    while rest:
        answer, end = json.JSONDecoder().raw_decode(rest)
        found, rest = [*found, [output["name"] for output in answer["outputs"]]], rest[end:]
    assert len(found) == commands.count("curl -s ") - 1  # one answer is a picture
    assert found.count(["logits"]) == 2  # to what the protocol has
    with Image.open(tmp_path / "boxes.jpg") as picture:
        assert picture.format == "JPEG"


def test_new_labels_count_from_the_next_process_on(daemon: Daemon) -> None:
    """Last, because it changes the config of the daemon."""
    model = next(each for each in daemon.config["models"] if each["name"] == "misnamed")
    model["labels"] = NAMES
    daemon.reload()
    assert "model misnamed: its new labels count from its next generation" in daemon.log.read_text()
    (child,) = (each for each in children(daemon, "service.inference.main") if "misnamed" in each.cmdline())

    def classes() -> Any:
        response = daemon.get("/v2/models/misnamed")
        return response.status_code == 200 and response.json()["outputs"][0].get("parameters", {}).get("classes")

    assert not classes()
    child.kill()
    assert eventually(classes, "it is up again") == NAMES
    renamed = f"generation 1: classes were numbered and are now called {', '.join(map(ascii, NAMES[:3]))}, ..."
    assert renamed in daemon.log.read_text()

"""The Open Inference Protocol as NVIDIA's own client speaks it, against the real daemon."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import itertools
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from edged.artifacts.store import ModelStore
from edged.calibration.images import decode_bytes, normalize
from tests.support import scenes
from tests.support.artifacts import write_untrained
from tests.support.daemon import Daemon, children, eventually
from tests.support.published import prepared
from tests.support.repository import ROOT
from tests.support.trained import INPUT

triton = pytest.importorskip("tritonclient.http", reason="tritonclient[http], of the extra 'test', is not installed")
from tritonclient.utils import InferenceServerException  # noqa: E402 - only where the line above finds it

PAGE = ROOT / "docs" / "http.md"
MAX_BODY = 1 << 20
PNG = io.BytesIO()
PIXELS = np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8)
Image.fromarray(PIXELS).save(PNG, "PNG")
FILE = PNG.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, dict[str, Any]]]:
    daemon, networks = prepared(tmp_path_factory.mktemp("served"), max_body_bytes=MAX_BODY)
    try:
        yield daemon.start(), networks
    finally:
        daemon.close()


@pytest.fixture
def daemon(served: tuple[Daemon, dict[str, Any]]) -> Daemon:
    return served[0]


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Any]:
    with triton.InferenceServerClient(daemon.status()["address"].removeprefix("http://")) as client:
        yield client


def tensor(name: str, datatype: str, values: Any, binary: bool = True, shape: Any = None) -> Any:
    given = triton.InferInput(name, shape or list(values.shape), datatype)
    return given.set_data_from_numpy(values, binary_data=binary)


def encoded(*files: bytes) -> Any:
    return tensor("image", "BYTES", np.array(files, object))


def test_the_client_finds_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["extensions"] == [
        *("binary_tensor_data", "classification", "model_configuration", "model_repository", "parameters", "statistics")
    ]
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("empty")
    assert not client.is_model_ready("digits", "2")
    described = client.get_model_metadata("digits", "1")
    assert described["versions"] == ["1"]
    assert [(i["name"], i["datatype"], i["shape"]) for i in described["inputs"]] == [
        ("input", "FP32", [-1, 3, 8, 8]),
        ("pixels", "UINT8", [-1, 3, 8, 8]),
        ("image", "BYTES", [-1, 1]),
    ]


@pytest.mark.parametrize(
    ("name", "datatype", "dtype"),
    [("input", "FP32", np.float32), ("input", "FP16", np.float16), ("input", "FP64", float), ("pixels", "UINT8", "u1")],
)
def test_a_classifier_answers_every_type(
    client: Any, served: tuple[Daemon, dict[str, Any]], name: str, datatype: str, dtype: Any
) -> None:
    random = np.random.default_rng(1)
    values = random.integers(0, 256, (2, 3, 8, 8)) if name == "pixels" else random.normal(size=(2, 3, 8, 8))
    values = values.astype(dtype)
    images = torch.from_numpy(values)
    images = torch.from_numpy(normalize(images.numpy(), INPUT)) if name == "pixels" else images.float()
    with torch.inference_mode():
        expected = served[1]["digits"](images).numpy()
    answers = []
    for binary_in in (True, False):
        if datatype == "FP16" and not binary_in:
            continue  # the client knows no FP16 in JSON
        for binary_out in (True, False):
            outputs = [triton.InferRequestedOutput("logits", binary_data=binary_out)]
            inputs = [tensor(name, datatype, values, binary_in)]
            answer = client.infer("digits", inputs, outputs=outputs, request_id="7")
            told = answer.get_response()
            assert (told["id"], told["model_name"], told["model_version"]) == ("7", "digits", "1")
            assert ("data" in told["outputs"][0]) is not binary_out
            answers.append(answer.as_numpy("logits"))
    np.testing.assert_allclose(answers[0], expected, rtol=1e-4, atol=1e-4)
    for other in answers[1:]:  # JSON tells floats to the last bit
        np.testing.assert_array_equal(other, answers[0])


def test_an_encoded_image_needs_no_base64(client: Any, served: tuple[Daemon, dict[str, Any]]) -> None:
    images = torch.from_numpy(normalize(decode_bytes(FILE, INPUT)[None], INPUT))
    with torch.inference_mode():
        expected = served[1]["digits"](images).numpy()
    answer = client.infer("digits", [encoded(FILE, FILE)], model_version="1")  # all outputs in binary
    assert "data" not in answer.get_response()["outputs"][0]
    np.testing.assert_allclose(answer.as_numpy("logits"), np.repeat(expected, 2, 0), rtol=1e-4, atol=1e-4)
    text = np.array([base64.b64encode(FILE)], object)
    same = client.infer("digits", [tensor("image", "BYTES", text, binary=False)])
    np.testing.assert_allclose(same.as_numpy("logits"), expected, rtol=1e-4, atol=1e-4)


def test_a_detector_gives_the_same_boxes_in_binary_and_in_json(client: Any, daemon: Daemon) -> None:
    parameters = {"confidence": 0.01, "max_detections": 5}
    answer = client.infer("shapes", [encoded(FILE)], parameters=parameters)
    data = [base64.b64encode(FILE).decode()]
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": data}], "parameters": parameters}
    plain = daemon.post("/v2/models/shapes/infer", json=body).json()
    assert [o["name"] for o in plain["outputs"]] == ["boxes", "scores", "class_ids", "names", "counts"]
    assert answer.as_numpy("counts").tolist() == [5]
    for output in plain["outputs"]:
        values = answer.as_numpy(output["name"])
        assert list(values.shape) == output["shape"]
        told = [v.decode() for v in values] if output["datatype"] == "BYTES" else values.ravel().tolist()
        assert told == output["data"]


def test_outputs_of_a_detector_each_in_its_own_way(client: Any, served: tuple[Daemon, dict[str, Any]]) -> None:
    values = np.random.default_rng(2).random((1, 3, scenes.SIDE, scenes.SIDE), np.float32)
    with torch.inference_mode():
        expected = served[1]["shapes"](torch.from_numpy(values)).numpy()
    outputs = [triton.InferRequestedOutput("raw"), triton.InferRequestedOutput("counts", binary_data=False)]
    answer = client.infer("shapes", [tensor("input", "FP32", values)], outputs=outputs)
    assert [("data" in output) for output in answer.get_response()["outputs"]] == [False, True]
    np.testing.assert_allclose(answer.as_numpy("raw"), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("model", "version", "inputs", "status", "reason"),
    [
        ("digits", "", [tensor("input", "FP32", np.zeros((1, 3, 8, 9), "f4"))], 400, "this model reads [-1, 3, 8, 8]"),
        ("digits", "", [tensor("input", "FP32", np.zeros((3, 8, 8), "f4"))], 400, "send 4 whole numbers"),
        ("digits", "", [tensor("input", "FP32", np.full((1, 3, 8, 8), np.nan, "f4"))], 400, "NaN"),
        ("digits", "", [tensor("input", "INT8", np.zeros((1, 3, 8, 8), "i1"))], 400, "datatype 'INT8'; send 'input'"),
        ("digits", "", [tensor("x", "FP32", np.zeros((1, 3, 8, 8), "f4"))], 400, "input 'x'"),
        ("digits", "", [encoded(b"none")], 400, "image 0 is not a JPEG"),
        ("digits", "", [encoded(FILE), encoded(FILE)], 400, "a list of one object"),
        ("digits", "", [tensor("input", "FP32", np.zeros((400, 3, 8, 32), "f4"))], 413, "serve.max_body_bytes"),
        ("digits", "2", [encoded(FILE)], 404, "no version '2' in service; live: 1"),
        ("digits", "first", [encoded(FILE)], 404, "no version 'first' in service"),
        ("nothing", "", [encoded(FILE)], 404, "no model 'nothing'; configured: digits, shapes, empty"),
        ("empty", "", [encoded(FILE)], 503, "has no generation in service yet"),
    ],
)
def test_the_client_is_told_what_is_wrong(
    client: Any, model: str, version: str, inputs: Any, status: int, reason: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, inputs, model_version=version)
    assert caught.value.status() == str(status)
    assert reason in caught.value.message()
    assert client.infer("digits", [encoded(FILE)]).as_numpy("logits").shape == (1, 10)  # the client can go on


def test_other_ways_to_be_refused(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="Content-Encoding has value 'gzip'; send the body uncompress"):
        client.infer("digits", [encoded(FILE)], request_compression_algorithm="gzip")
    with pytest.raises(InferenceServerException, match="parameter classification of output 'boxes'; it is for classif"):
        client.infer("shapes", [encoded(FILE)], outputs=[triton.InferRequestedOutput("boxes", class_count=3)])
    with pytest.raises(InferenceServerException, match="no model 'nothing'"):
        client.get_model_metadata("nothing")


def test_the_client_reads_configurations(client: Any) -> None:
    config = client.get_model_config("digits", "1")
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("digits", "onnxruntime", 128)
    assert config["input"][0] == {"name": "input", "data_type": "TYPE_FP32", "dims": [3, 8, 8], "optional": True}
    detector = client.get_model_config("shapes")
    assert (detector["max_batch_size"], detector["output"][0]["dims"]) == (0, [-1, 4])
    with pytest.raises(InferenceServerException, match="no version '2' in service; live: 1"):
        client.get_model_config("digits", "2")
    with pytest.raises(InferenceServerException, match="has no generation in service yet"):
        client.get_model_config("empty")


def test_the_client_reads_statistics(client: Any) -> None:
    def read(*model: str) -> dict[str, Any]:
        (found,) = client.get_inference_statistics(*model)["model_stats"]
        return found

    before = read("digits", "1")
    client.infer("digits", [encoded(FILE, FILE)])
    with pytest.raises(InferenceServerException):
        client.infer("digits", [encoded(b"none")])
    after = read("digits")
    assert (after["name"], after["version"]) == ("digits", "1")
    assert after["last_inference"] > 1e12  # milliseconds since 1970
    assert after["last_inference"] >= before["last_inference"]
    assert after["inference_count"] - before["inference_count"] == 2
    assert after["execution_count"] - before["execution_count"] == 1
    spent = {}
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"):
        old, new = before["inference_stats"][name], after["inference_stats"][name]
        assert new["count"] == old["count"] + 1, name
        spent[name] = new["ns"] - old["ns"]
    parts = [spent[name] for name in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert min(parts) > 0
    assert sum(parts) < spent["success"]  # the rest is the way from process to process
    assert after["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    (pair,) = (batch for batch in after["batch_stats"] if batch["batch_size"] == 2)
    assert pair["compute_infer"]["ns"] > 0
    assert after["memory_usage"][0]["byte_size"] > 1 << 20
    everything = client.get_inference_statistics()["model_stats"]
    assert [(each["name"], each["version"]) for each in everything] == [("digits", "1"), ("shapes", "1")]
    with pytest.raises(InferenceServerException, match="model 'empty' has no generation"):
        client.get_inference_statistics("empty")
    with pytest.raises(InferenceServerException, match="no model 'nothing'"):
        client.get_inference_statistics("nothing")


def test_the_client_reads_the_index_and_cannot_load(client: Any, daemon: Daemon) -> None:
    assert daemon.get("/v2/models").json() == {"models": ["digits", "shapes", "empty"]}
    ready = [{"name": name, "version": "1", "state": "READY", "reason": ""} for name in ("digits", "shapes")]
    empty = {"name": "empty", "state": "UNAVAILABLE", "reason": "model 'empty' has no generation in service yet"}
    assert client.get_model_repository_index() == [*ready, empty]
    assert daemon.post("/v2/repository/index", json={"ready": True}).json() == ready
    for body in (b"[]", b"{", b'{"ready": 1}'):
        answer = daemon.post("/v2/repository/index", content=body)
        assert (answer.status_code, "send" in answer.json()["error"]) == (400, True)
    for change, ways in (
        (client.load_model, ("the folder digits of `drop_dir`", "edged submit", "edged rollback")),
        (client.unload_model, ("edged unloads", "remove digits from `models`", "edged rollback")),
    ):
        with pytest.raises(InferenceServerException) as caught:
            change("digits")
        assert caught.value.status() == "400"
        for way in ways:
            assert way in caught.value.message()
        assert str(daemon.state) not in caught.value.message()  # clients need not know where files are
        with pytest.raises(InferenceServerException, match="no model 'nothing'"):
            change("nothing")


def test_the_index_has_what_a_rollback_can_bring_back_and_what_is_started_again(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path)
    write_untrained(daemon.state / "digits", seed=2)
    store = ModelStore(daemon.state / "models")
    store.switch("digits", store.publish("digits", daemon.state / "digits"))

    def index() -> list[dict[str, str]]:
        found: list[dict[str, str]] = daemon.post("/v2/repository/index").json()
        return found

    try:
        daemon.start()
        (fork_server,) = children(daemon, "service.inference.fork_server")
        (child,) = (each for each in children(daemon, "service.inference.main") if "shapes" in each.cmdline())
        fork_server.suspend()  # so that it is not started again at once
        child.kill()
        eventually(lambda: index()[2]["state"] == "LOADING", "the killed process is missed")
        first, second, killed, empty = index()
        assert daemon.post("/v2/repository/index", json={"ready": True}).json() == [second]
        statistics = daemon.get("/v2/models/shapes/stats").json()["model_stats"][0]
        config = daemon.get("/v2/models/shapes/config")
        fork_server.resume()
        eventually(lambda: index()[2]["state"] == "READY", "it is started again")
    finally:
        daemon.close()
    kept = {"name": "digits", "version": "1", "state": "UNAVAILABLE"}
    assert first == {**kept, "reason": "`edged rollback digits --to 1` puts it in service"}
    assert second == {"name": "digits", "version": "2", "state": "READY", "reason": ""}
    assert (killed["name"], killed["version"]) == ("shapes", "1")
    assert "has lost its process, which is being started again" in killed["reason"]
    assert empty["state"] == "UNAVAILABLE"
    assert (statistics["version"], statistics["inference_count"], statistics["memory_usage"]) == ("1", 0, [])
    assert (config.status_code, "has lost its process" in config.json()["error"]) == (503, True)


def test_what_the_client_knows_and_edged_lacks(client: Any, daemon: Daemon) -> None:
    for call, extension in (
        (client.get_trace_settings, "trace"),
        (client.get_log_settings, "logging"),
        (client.get_system_shared_memory_status, "system_shared_memory"),
        (client.get_cuda_shared_memory_status, "cuda_shared_memory"),
    ):
        with pytest.raises(InferenceServerException, match=f"the extension '{extension}', which edged does not have"):
            call()
    answer = daemon.get("/v2/nothing")
    assert (answer.status_code, answer.json()) == (404, {"error": "GET /v2/nothing is not served: Not Found"})
    answer = daemon.post("/v2/models")
    assert (answer.status_code, sorted(answer.headers["allow"].split(", "))) == (405, ["GET", "HEAD"])


def test_the_example_of_the_page(daemon: Daemon, tmp_path: Path) -> None:
    text = PAGE.read_text().split("(`pip install tritonclient[http]`):\n\n")[1]
    code = textwrap.dedent("".join(itertools.takewhile(lambda line: line.startswith("    "), text.splitlines(True))))
    code = code.replace("127.0.0.1:8080", daemon.status()["address"].removeprefix("http://")).replace("NAME", "digits")
    (tmp_path / "photo.jpg").write_bytes(FILE)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    (logits,) = daemon.infer(tmp_path / "photo.jpg").json()["outputs"]
    assert done.stdout == f"1 {np.argmax(logits['data'])}\n"


def test_a_file_is_enough_of_a_request(daemon: Daemon) -> None:
    headers = {"Inference-Header-Content-Length": "0"}
    answer = daemon.post("/v2/models/digits/infer", content=FILE, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["outputs"][0]["shape"] == [1, 10]


@pytest.mark.parametrize("length", ["-1", "1e3", "99999", "1" * 5000, "٣", "", "0x10", "3, 3"])
def test_a_length_that_cannot_be(daemon: Daemon, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode()}
    answer = daemon.post("/v2/models/digits/infer", content=b'{"inputs": []}', headers=headers)
    assert (answer.status_code, "Inference-Header-Content-Length" in answer.json()["error"]) == (400, True)
    assert "Traceback" not in daemon.log.read_text()


def test_what_is_not_ready_says_why(daemon: Daemon) -> None:
    answer = daemon.get("/v2/models/empty/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"ready": False, "error": "model 'empty' has no generation in service yet"}
    answer = daemon.post("/v2/health/ready")
    assert answer.status_code == 405
    assert answer.json() == {"error": "POST /v2/health/ready is not served: Method Not Allowed"}


def test_too_busy_and_too_slow(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, queue=1)
    body = {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": [0] * 192}]}
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(daemon.post("/v2/models/digits/infer", content=json.dumps(body)))

    try:
        daemon.start()
        (child,) = (each for each in children(daemon, "service.inference.main") if "digits" in each.cmdline())
        child.suspend()
        waiting = threading.Thread(target=ask)
        waiting.start()
        eventually(lambda: daemon.metric('edged_inference_requests_in_flight{model="digits"}') == 1, "a request")
        ask()  # while the queue is full
        child.resume()
        waiting.join()
        daemon.config["serve"]["deadline_ms"] = 50
        daemon.reload()
        child.suspend()
        ask()
        child.resume()
    finally:
        daemon.close()
    assert [answer.status_code for answer in answers] == [429, 200, 504]
    for answer, reason in ((answers[0], "has 1 requests waiting"), (answers[2], "gave no answer within 0.05 s")):
        assert reason in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"


def connected(daemon: Daemon) -> http.client.HTTPConnection:
    """A connection that is never opened a second time."""
    parts = urlsplit(daemon.status()["address"])
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.connect()
    connection.auto_open = 0
    return connection


def test_bodies_stay_whole_over_one_connection(daemon: Daemon) -> None:
    values = np.random.default_rng(3).normal(size=(4, 3, 8, 8)).astype("<f4")
    described = {"name": "input", "datatype": "FP32", "shape": [4, 3, 8, 8]}
    text = json.dumps({"inputs": [described | {"parameters": {"binary_data_size": values.nbytes}}]}).encode()
    good = text + values.tobytes()
    with contextlib.closing(connected(daemon)) as connection:
        for body, status, reason in 3 * [
            (good, 200, b"logits"),
            (good[:-1], 400, b"3071 bytes follow the JSON"),
            (bytes(MAX_BODY + 1), 413, b"serve.max_body_bytes"),
        ]:
            headers = {"Inference-Header-Content-Length": str(len(text))}
            connection.request("POST", "/v2/models/digits/infer", body, headers)
            answer = connection.getresponse()
            assert (answer.status, reason in answer.read()) == (status, True)


def test_a_version_that_is_replaced_while_the_body_comes(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path)
    write_untrained(daemon.state / "digits", seed=2)
    store = ModelStore(daemon.state / "models")
    store.switch("digits", store.publish("digits", daemon.state / "digits"))
    try:
        daemon.start()
        with contextlib.closing(connected(daemon)) as connection:
            for version in ("2", "1"):  # the second time on the same connection, after the swap
                connection.putrequest("POST", f"/v2/models/digits/versions/{version}/infer")
                connection.putheader("Content-Length", str(len(FILE)))
                connection.putheader("Inference-Header-Content-Length", "0")
                connection.endheaders(FILE[:100])
                if version == "2":
                    assert daemon.post("/edged/v1/models/digits/rollback").status_code == 200
                connection.send(FILE[100:])
                answer = connection.getresponse()
                told = json.loads(answer.read())
                if version == "2":
                    assert (answer.status, told["error"]) == (
                        404,
                        "model 'digits' has no version '2' in service; live: 1",
                    )
                else:
                    assert (answer.status, told["model_version"]) == (200, "1")
    finally:
        daemon.close()

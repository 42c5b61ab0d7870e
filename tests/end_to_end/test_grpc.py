"""The Open Inference Protocol over gRPC, as NVIDIA's own client speaks it, against the real daemon."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.grpc.messages import SERVICE, ModelInferRequest, ModelInferResponse
from tests.support import scenes
from tests.support.daemon import TIMEOUT_S, Daemon, children, eventually, running
from tests.support.published import prepared
from tests.support.tasks import Task

triton = pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc], of the extra 'test', is not installed")
import grpc  # noqa: E402 - only where the line above finds the client, which needs it
import tritonclient.http as triton_http  # noqa: E402 - likewise
from tritonclient.utils import InferenceServerException  # noqa: E402 - likewise

MAX_BODY = 1 << 20
WORD = "sesame"  # the token of inference
PNG = io.BytesIO()
Image.fromarray(np.random.default_rng(5).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(PNG, "PNG")
FILE = PNG.getvalue()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("served")
    daemon, _ = prepared(folder, max_body_bytes=MAX_BODY, grpc_port=0, inference_token_file=str(folder / "token"))
    (folder / "token").write_text(f"{WORD}\n")
    try:
        yield daemon.start()
    finally:
        daemon.close()


class Client(triton.InferenceServerClient):  # type: ignore[misc]  # it has no types
    """A client of a daemon, with a token."""

    def __init__(self, daemon: Daemon, token: str = WORD) -> None:
        super().__init__(daemon.status()["grpc_address"])
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def infer(self, *arguments: Any, **options: Any) -> Any:
        return super().infer(*arguments, headers=self.headers, **options)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon) as client:
        yield client


def tensor(name: str, datatype: str, values: Any, library: Any = triton) -> Any:
    return library.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def encoded(*files: bytes, library: Any = triton) -> Any:
    return tensor("image", "BYTES", np.array(files, object), library)


def test_the_client_finds_what_there_is(client: Client, daemon: Daemon) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("empty")
    assert not client.is_model_ready("digits", "2")
    assert not client.is_model_ready("unknown")
    told, http = client.get_server_metadata(as_json=True), daemon.get("/v2").json()
    assert told == http
    described = client.get_model_metadata("digits", "1", as_json=True)
    expected = daemon.get("/v2/models/digits").json()
    assert (described["name"], described["versions"]) == ("digits", ["1"])
    assert described["platform"] == expected["platform"]
    for kind in ("inputs", "outputs"):
        found = [(each["name"], each["datatype"], list(map(int, each["shape"]))) for each in described[kind]]
        assert found == [(each["name"], each["datatype"], each["shape"]) for each in expected[kind]]


def test_the_client_finds_what_triton_has(client: Client, daemon: Daemon) -> None:
    config, expected = client.get_model_config("digits").config, daemon.get("/v2/models/digits/config").json()
    assert (config.name, config.backend, config.max_batch_size) == (
        "digits",
        expected["backend"],
        expected["max_batch_size"],
    )
    assert [(each.name, list(each.dims)) for each in config.input] == [
        (each["name"], each["dims"]) for each in expected["input"]
    ]
    before = client.get_inference_statistics("digits").model_stats[0].inference_count
    client.infer("digits", [encoded(FILE, FILE)])
    assert client.get_inference_statistics("digits").model_stats[0].inference_count == before + 2
    assert {each.name for each in client.get_inference_statistics().model_stats} == {"digits", "shapes"}
    index = [(each.name, each.version, each.state) for each in client.get_model_repository_index().models]
    assert index == [("digits", "1", "READY"), ("shapes", "1", "READY"), ("empty", "", "UNAVAILABLE")]
    for change, text in ((client.load_model, "loads what is dropped"), (client.unload_model, "out of the config")):
        with pytest.raises(InferenceServerException, match=f"{text}.*the folder digits of `drop_dir`"):
            change("digits")
    with pytest.raises(
        InferenceServerException, match="belongs to the extension 'system_shared_memory', which edged does not have"
    ) as caught:
        client.get_system_shared_memory_status()
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    with pytest.raises(InferenceServerException, match="belongs to the extension 'logging'"):
        client.get_log_settings()


@pytest.mark.parametrize("name", ["input", "pixels", "image"])
def test_answers_are_those_of_http_to_the_last_bit(client: Client, daemon: Daemon, name: str) -> None:
    random = np.random.default_rng(1)
    values: dict[str, tuple[str, Any]] = {
        "input": ("FP32", random.normal(size=(2, 3, 8, 8)).astype(np.float32)),
        "pixels": ("UINT8", random.integers(0, 256, (2, 3, 8, 8), np.uint8)),
        "image": ("BYTES", np.array([FILE, FILE], object)),
    }
    ours = client.infer("digits", [tensor(name, *values[name])], request_id="7")
    with triton_http.InferenceServerClient(daemon.status()["address"].removeprefix("http://")) as http:
        theirs = http.infer("digits", [tensor(name, *values[name], triton_http)], headers=dict(client.headers))
    told = ours.get_response()
    assert (told.id, told.model_name, told.model_version) == ("7", "digits", "1")
    assert ours.as_numpy("logits").shape == (2, 10)
    assert ours.as_numpy("logits").tobytes() == theirs.as_numpy("logits").tobytes()


def test_a_detector_and_its_parameters(client: Client, daemon: Daemon) -> None:
    parameters = {"confidence": 0.01, "max_detections": 5}
    ours = client.infer("shapes", [encoded(FILE)], parameters=parameters)
    with triton_http.InferenceServerClient(daemon.status()["address"].removeprefix("http://")) as http:
        image = encoded(FILE, library=triton_http)
        theirs = http.infer("shapes", [image], parameters=parameters, headers=dict(client.headers))
    names = [output.name for output in ours.get_response().outputs]
    assert names == ["boxes", "scores", "class_ids", "names", "counts"]
    assert ours.as_numpy("counts").tolist() == [5]
    for name in names:
        assert np.array_equal(ours.as_numpy(name), theirs.as_numpy(name))
    values = np.random.default_rng(2).random((1, 3, scenes.SIDE, scenes.SIDE), np.float32)
    outputs = [triton.InferRequestedOutput("raw"), triton.InferRequestedOutput("counts")]
    answer = client.infer("shapes", [tensor("input", "FP32", values)], outputs=outputs)
    assert [output.name for output in answer.get_response().outputs] == ["raw", "counts"]


def test_triton_s_classification(client: Client, daemon: Daemon) -> None:
    ours = client.infer("digits", [encoded(FILE)], outputs=[triton.InferRequestedOutput("logits", class_count=3)])
    with triton_http.InferenceServerClient(daemon.status()["address"].removeprefix("http://")) as http:
        outputs = [triton_http.InferRequestedOutput("logits", class_count=3)]
        image = encoded(FILE, library=triton_http)
        theirs = http.infer("digits", [image], outputs=outputs, headers=dict(client.headers))
    assert ours.as_numpy("logits").shape == (1, 3)
    assert np.array_equal(ours.as_numpy("logits"), theirs.as_numpy("logits"))


def call(daemon: Daemon, raw: bytes, token: str = WORD, **options: Any) -> bytes:
    """Send any bytes as a message of ModelInfer."""
    with grpc.insecure_channel(daemon.status()["grpc_address"]) as channel:
        method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        metadata = [("authorization", f"Bearer {token}")] if token else []
        found: bytes = method(raw, metadata=metadata, timeout=TIMEOUT_S, **options)
        return found


def test_typed_contents_are_answered_in_kind(client: Client, daemon: Daemon) -> None:
    values = np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    request = ModelInferRequest(model_name="digits")
    request.inputs.add(name="input", datatype="FP32", shape=values.shape)
    request.inputs[0].contents.fp32_contents.extend(values.ravel().tolist())
    answer = ModelInferResponse.FromString(call(daemon, request.SerializeToString()))
    expected = client.infer("digits", [tensor("input", "FP32", values)]).as_numpy("logits")
    assert not answer.raw_output_contents
    assert np.array(answer.outputs[0].contents.fp32_contents, np.float32).tobytes() == expected.tobytes()


SHAPE = (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("model", "version", "given", "code", "reason"),
    [
        ("digit", "", encoded(FILE), "NOT_FOUND", "no model 'digit'; did you mean 'digits'"),
        ("digits", "2", encoded(FILE), "NOT_FOUND", "no version '2' in service; live: 1"),
        ("empty", "", encoded(FILE), "UNAVAILABLE", "has no generation in service yet"),
        ("digits", "", encoded(b"none"), "INVALID_ARGUMENT", "image 0 is not a JPEG"),
        ("digits", "", tensor("input", "FP32", np.zeros((1, 3, 9, 9), "f4")), "INVALID_ARGUMENT", "this model reads"),
        ("digits", "", tensor("input", "INT8", np.zeros(SHAPE, "i1")), "INVALID_ARGUMENT", "of datatype 'INT8'"),
        (
            "digits",
            "",
            tensor("input", "FP64", np.zeros((2 * MAX_BODY // 8,))),
            "RESOURCE_EXHAUSTED",
            "larger than max",
        ),
        ("digits", "", triton.InferInput("input", SHAPE, "FP32"), "INVALID_ARGUMENT", "has no values"),
    ],
)
def test_what_is_refused(client: Client, model: str, version: str, given: Any, code: str, reason: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given], model_version=version)
    assert caught.value.status() == f"StatusCode.{code}"
    assert reason in caught.value.message()
    assert client.infer("digits", [encoded(FILE)]).as_numpy("logits").shape == (1, 10)  # the client can go on


@pytest.mark.parametrize(
    ("raw", "options", "code", "reason"),
    [
        (b"\x00\x01", {}, grpc.StatusCode.INVALID_ARGUMENT, "the message is no ModelInferRequest"),
        (b"", {}, grpc.StatusCode.NOT_FOUND, "no model ''"),
        (b"", {"token": "wrong"}, grpc.StatusCode.UNAUTHENTICATED, "wrong or missing token"),
        (b"", {"token": ""}, grpc.StatusCode.UNAUTHENTICATED, "wrong or missing token"),
        (bytes(MAX_BODY), {"compression": grpc.Compression.Gzip}, grpc.StatusCode.UNIMPLEMENTED, "'gzip' is disabled"),
    ],
)
def test_messages_that_no_client_sends(daemon: Daemon, raw: bytes, options: Any, code: Any, reason: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(daemon, raw, **options)
    assert (caught.value.code(), reason in caught.value.details()) == (code, True), caught.value.details()
    assert "Traceback" not in daemon.log.read_text()


def test_wrong_tokens_are_slowed_down_and_the_right_one_is_not(daemon: Daemon, client: Client) -> None:
    with grpc.insecure_channel(daemon.status()["grpc_address"]) as channel:
        infer = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        wrong = [("authorization", "Bearer guess")]
        guesses = [infer.future(iter([b""]), metadata=wrong, wait_for_ready=True) for _ in range(20)]
        eventually(lambda: any(found.done() for found in guesses), "some are answered")

        def refused() -> list[Any]:
            return [each for each in guesses if each.done() and each.code() is grpc.StatusCode.RESOURCE_EXHAUSTED]

        eventually(refused, "some are refused")
        assert client.infer("digits", [encoded(FILE)]).as_numpy("logits").shape == (1, 10)
        assert "too many wrong tokens from 127.0.0.1" in refused()[0].details()
        counted = 'edged_http_refused_total{reason="token"}'
        eventually(lambda: daemon.metric(counted) == len(refused()), "each that is refused is counted")
        for each in guesses:
            each.cancel()


def test_requests_are_counted(client: Client, daemon: Daemon) -> None:
    def counted(code: int) -> float:
        return daemon.metric(f'edged_inference_requests_total{{code="{code}",model="digits"}}') or 0

    before = counted(200), counted(400)
    client.infer("digits", [encoded(FILE)])
    with pytest.raises(InferenceServerException):
        client.infer("digits", [encoded(b"none")])
    eventually(lambda: (counted(200), counted(400)) == (before[0] + 1, before[1] + 1), "both are counted")


def suspended(daemon: Daemon) -> Any:
    (child,) = (each for each in children(daemon, "service.inference.main") if "digits" in each.cmdline())
    child.suspend()
    return child


def outcome(daemon: Daemon, **options: Any) -> tuple[str, str]:
    """Send a request; returns the code and the message of its error, or "OK"."""
    with Client(daemon, token="") as client:
        try:
            client.infer("digits", [encoded(FILE)], **options)
        except InferenceServerException as error:
            return str(error.status()).removeprefix("StatusCode."), error.message()
    return "OK", ""


def test_too_busy_too_slow_and_cancelled(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, queue=1, grpc_port=0)
    answers: list[tuple[str, str]] = []
    waiting = threading.Thread(target=lambda: answers.append(outcome(daemon)))

    def in_flight(count: int) -> bool:
        return daemon.metric('edged_inference_requests_in_flight{model="digits"}') == count

    def overdue() -> float:
        return daemon.metric('edged_inference_requests_total{code="504",model="digits"}') or 0

    def is_overdue_for_its_client() -> bool:
        """Whether a request whose client waits 0.2 s is counted; one that was that long on its way is not."""
        assert outcome(daemon, client_timeout=0.2)[0] in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        return overdue() > 0

    try:
        daemon.start()
        child = suspended(daemon)
        waiting.start()
        eventually(lambda: in_flight(1), "a request")
        code, message = outcome(daemon)  # while the queue is full
        assert (code, "has 1 requests waiting" in message) == ("RESOURCE_EXHAUSTED", True)
        child.resume()
        waiting.join()
        assert answers == [("OK", "")]
        child.suspend()
        eventually(is_overdue_for_its_client, "a request that its client gave up counts")
        eventually(lambda: in_flight(0), "the daemon forgets it")
        child.resume()
        daemon.config["serve"]["deadline_ms"] = 50
        daemon.reload()
        child.suspend()
        before = overdue()
        code, message = outcome(daemon)
        assert (code, "gave no answer within 0.05 s" in message) == ("DEADLINE_EXCEEDED", True)
        child.resume()
        eventually(lambda: overdue() == before + 1, "it is counted")
    finally:
        daemon.close()


def nothing_until(end: threading.Event) -> Iterator[bytes]:
    """Send no message, and end the call once the event is set."""
    end.wait(TIMEOUT_S)
    yield from ()


def test_a_message_that_does_not_arrive(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, body_timeout_s=0.05, grpc_port=0)
    never = threading.Event()

    try:
        daemon.start()
        with grpc.insecure_channel(daemon.status()["grpc_address"]) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.stream_unary(f"/{SERVICE}/ModelInfer")(nothing_until(never), timeout=TIMEOUT_S)
            never.set()
    finally:
        daemon.close()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "the message did not arrive within serve.body_timeout_s = 0.05" in caught.value.details()


def test_connections_that_send_nothing(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, max_connections=8, grpc_port=0)
    try:
        daemon.start()
        host, port = daemon.status()["grpc_address"].split(":")
        with contextlib.ExitStack() as held:
            silent = [held.enter_context(socket.create_connection((host, int(port)), TIMEOUT_S)) for _ in range(40)]
            for each in silent:  # those over the limit are closed at once, the others soon
                with contextlib.suppress(ConnectionResetError):
                    while each.recv(1024):
                        pass
            eventually(lambda: outcome(daemon) == ("OK", ""), "their places are free for others")
    finally:
        daemon.close()


def test_a_stop_does_not_wait_for_connections_that_send_nothing(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, grpc_port=0)
    try:
        daemon.start()
        assert daemon.process is not None
        host, port = daemon.status()["grpc_address"].split(":")
        with socket.create_connection((host, int(port)), TIMEOUT_S) as silent:
            silent.recv(1024)  # the server's settings: the connection is known to gRPC
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(TIMEOUT_S) == 0
        assert "Traceback" not in daemon.log.read_text()
        assert "Task was destroyed" not in daemon.log.read_text()
    finally:
        daemon.close()


LARGE = 4 << 20  # a message that is allowed within 16 MiB for all


def anonymous_bytes(daemon: Daemon) -> int:
    """Return the private memory of the supervisor."""
    assert daemon.process is not None
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def test_memory_of_messages_is_bounded_and_returned(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, max_body_bytes=4 * LARGE, grpc_port=0)
    request = ModelInferRequest(model_name="digits")
    request.raw_input_contents.append(bytes(LARGE - 1024))
    raw, most, never = request.SerializeToString(), 0, threading.Event()
    try:
        daemon.start()
        before = anonymous_bytes(daemon)
        with pytest.raises(grpc.RpcError, match="larger than max"):
            call(daemon, bytes(LARGE + 1), token="")
        with grpc.insecure_channel(daemon.status()["grpc_address"]) as channel:
            method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            sent = [method.future(raw, timeout=TIMEOUT_S) for _ in range(32)]
            while not all(each.done() for each in sent):
                most = max(most, anonymous_bytes(daemon))
                never.wait(0.01)
            assert {each.code() for each in sent} == {grpc.StatusCode.INVALID_ARGUMENT}  # each of them was read
        most = max(most, anonymous_bytes(daemon))
        assert most - before < 12 * LARGE  # 3 arrive at once, in pieces and as a copy; the rest is holes
        eventually(lambda: anonymous_bytes(daemon) - before < 3 * LARGE, "the memory is returned")
    finally:
        daemon.close()


def test_other_methods_answer_while_messages_are_slow(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, grpc_port=0)
    never = threading.Event()

    try:
        daemon.start()
        with grpc.insecure_channel(daemon.status()["grpc_address"]) as channel, Client(daemon) as client:
            slow = [channel.stream_unary(f"/{SERVICE}/ModelInfer").future(nothing_until(never)) for _ in range(8)]
            assert client.is_server_live()
            assert client.is_model_ready("digits")
            for each in slow:
                each.cancel()
            never.set()
            assert client.infer("digits", [encoded(FILE)]).as_numpy("logits").shape == (1, 10)  # their turns are free
    finally:
        never.set()
        daemon.close()


def test_the_standard_health_check(tmp_path: Path) -> None:
    health = pytest.importorskip("grpc_health.v1.health_pb2_grpc", reason="grpcio-health-checking is not installed")
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    daemon, _ = prepared(tmp_path, grpc_port=0)
    try:
        daemon.start()
        assert daemon.process is not None
        with grpc.insecure_channel(daemon.status()["grpc_address"]) as channel:
            stub = health.HealthStub(channel)
            for name in ("", SERVICE):
                assert stub.Check(HealthCheckRequest(service=name)).status == HealthCheckResponse.SERVING
            with pytest.raises(grpc.RpcError, match="no service 'other'") as caught:
                stub.Check(HealthCheckRequest(service="other"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            unknown = stub.Watch(HealthCheckRequest(service="other"))
            assert next(unknown).status == HealthCheckResponse.SERVICE_UNKNOWN
            watched = stub.Watch(HealthCheckRequest())
            assert next(watched).status == HealthCheckResponse.SERVING
            daemon.process.send_signal(signal.SIGTERM)
            assert [each.status for each in watched] == [HealthCheckResponse.NOT_SERVING]  # then it ends
        assert daemon.process.wait(TIMEOUT_S) == 0
    finally:
        daemon.close()


def test_requests_that_have_begun_are_answered_before_the_end(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path, grpc_port=0)
    answers: list[tuple[str, str]] = []
    try:
        daemon.start()
        assert daemon.process is not None
        child = suspended(daemon)
        waiting = threading.Thread(target=lambda: answers.append(outcome(daemon)))
        waiting.start()
        eventually(lambda: daemon.metric('edged_inference_requests_in_flight{model="digits"}') == 1, "a request")
        daemon.process.send_signal(signal.SIGTERM)
        eventually(lambda: "stopping: no new requests" in daemon.log.read_text(), "it stops")
        child.resume()
        waiting.join()
        assert daemon.process.wait(TIMEOUT_S) == 0
    finally:
        daemon.close()
    assert answers == [("OK", "")]


class Asker(threading.Thread):
    """Sends requests over one channel until it is ended."""

    def __init__(self, daemon: Daemon, image: bytes) -> None:
        super().__init__()
        self._client = Client(daemon, token="")
        self._image = encoded(image)
        self._over = threading.Event()
        self.answers: list[str] = []

    def run(self) -> None:
        with self._client as client:
            while not self._over.is_set():
                try:
                    self.answers.append(client.infer("digits", [self._image]).get_response().model_version)
                except InferenceServerException as error:
                    self.answers.append(str(error))

    def end(self) -> list[str]:
        self._over.set()
        self.join(TIMEOUT_S)
        return self.answers


@pytest.mark.parametrize("swap", ["availability", "resource"])
def test_a_swap_under_traffic(task: Task, tmp_path: Path, swap: str) -> None:
    with running(tmp_path, task.calibration, serve={"port": 0, "grpc_port": 0}) as daemon:
        daemon.config["models"][0]["swap"] = swap
        daemon.reload()
        daemon.put_live(task.first)
        askers = [Asker(daemon, FILE) for _ in range(2)]
        for asker in askers:
            asker.start()
        try:
            eventually(lambda: all(len(asker.answers) > 20 for asker in askers), "traffic")
            daemon.put_live(task.second)
            eventually(lambda: all(asker.answers[-1] == "2" for asker in askers), "the new one answers")
        finally:
            answers = [asker.end() for asker in askers]
        for each in answers:
            assert set(each) == {"1", "2"}  # no error
            assert each == sorted(each)  # never back to the old one


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        daemon, _ = prepared(tmp_path, grpc_port=port)
        process = daemon.spawn()
        try:
            assert process.wait(TIMEOUT_S) == 69
        finally:
            daemon.close()
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in daemon.log.read_text()
    assert "stop the program that uses the port or change serve.grpc_port" in daemon.log.read_text()
    assert "Traceback" not in daemon.log.read_text()


def test_without_a_port_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    daemon, _ = prepared(tmp_path)
    try:
        daemon.start()
        assert daemon.process is not None
        assert daemon.status()["grpc_address"] is None
        assert "cygrpc" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()
    finally:
        daemon.close()

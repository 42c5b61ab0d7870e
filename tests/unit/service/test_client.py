import socket
import threading
from contextlib import contextmanager

import pytest

from edged.errors import AccessError, GateError, NotReadyError, StateError, UnavailableError, UsageError
from service.client import DaemonClient, DaemonError


@contextmanager
def answering(path, *pieces):
    """A server that gives one answer, piece by piece, and keeps what it was asked."""
    asked = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(10_000))
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def reply(status, body):
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body.encode()


def test_a_request_is_plain_http_and_the_answer_may_come_in_pieces(tmp_path):
    answer = reply(200, '{"ready": true}')
    with answering(tmp_path / "s", answer[:7], answer[7:60], answer[60:]) as asked:
        assert DaemonClient(str(tmp_path / "s")).get("/edged/v1/status") == {"ready": True}
    assert asked[0].startswith(b"GET /edged/v1/status HTTP/1.1\r\nHost: edged\r\nConnection: close\r\n")
    assert asked[0].endswith(b"\r\n\r\n")


def test_post_is_post(tmp_path):
    with answering(tmp_path / "s", reply(200, "{}")) as asked:
        assert DaemonClient(str(tmp_path / "s")).post("/x") == {}
    assert asked[0].startswith(b"POST /x HTTP/1.1\r\n")
    assert b"\r\nContent-Length: 0\r\n" in asked[0]


def test_a_body_is_json(tmp_path):
    with answering(tmp_path / "s", reply(200, "{}")) as asked:
        DaemonClient(str(tmp_path / "s")).post("/x", {"to": 3})
    assert asked[0].endswith(b'\r\nContent-Length: 9\r\n\r\n{"to": 3}')


@pytest.mark.parametrize(
    ("status", "body", "kind", "exit_code"),
    [
        (404, '{"error": "no model", "code": "usage"}', UsageError, 2),
        (404, '{"error": "no model"}', UsageError, 2),
        (403, '{"error": "no model", "code": "permission"}', AccessError, 77),
        (409, '{"error": "no model", "code": "not_ready"}', NotReadyError, 4),
        (503, '{"error": "no model"}', NotReadyError, 4),
        (500, '{"error": "no model", "code": "state"}', StateError, 73),
        (400, '{"error": "no model", "code": "gate"}', GateError, 3),
        (500, '{"error": "no model"}', DaemonError, 1),
    ],
)
def test_errors_keep_their_class_and_exit_code(tmp_path, status, body, kind, exit_code):
    with answering(tmp_path / "s", reply(status, body)), pytest.raises(kind, match=r"^no model$") as caught:
        DaemonClient(str(tmp_path / "s")).get("/x")
    assert caught.value.exit_code == exit_code


def test_an_error_without_words_gets_some(tmp_path):
    with answering(tmp_path / "s", reply(500, "[]")), pytest.raises(DaemonError, match="answers with HTTP 500"):
        DaemonClient(str(tmp_path / "s")).get("/x")


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>", b"HTTP/1.1"])
def test_what_is_no_daemon_is_told(tmp_path, answer):
    with answering(tmp_path / "s", answer), pytest.raises(UnavailableError, match="is no edged daemon"):
        DaemonClient(str(tmp_path / "s")).get("/x")


def test_no_daemon_is_told_with_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    for name in ("none", "stale", "file"):
        with pytest.raises(UnavailableError, match=rf"{name}; start it with `edged run --config FILE`") as caught:
            DaemonClient(str(tmp_path / name)).get("/x")
        assert caught.value.exit_code == 69


def test_a_daemon_that_hangs_is_given_up(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with pytest.raises(UnavailableError, match="timed out; see its log"):
            DaemonClient(str(tmp_path / "s"), timeout_s=0.05).get("/x")


def test_a_path_too_long_is_told(tmp_path):
    with pytest.raises(UnavailableError, match="path too long"):
        DaemonClient(str(tmp_path / ("x" * 200))).get("/x")


def test_a_health_check_succeeds_only_with_an_answer(tmp_path):
    with answering(tmp_path / "live", reply(200, '{"live": true}')) as asked:
        assert DaemonClient(str(tmp_path / "live")).is_live()
    assert asked[0].startswith(b"GET /v2/health/live HTTP/1.1\r\n")
    assert not DaemonClient(str(tmp_path / "nobody")).is_live()
    with socket.socket(socket.AF_UNIX) as listener:  # accepts, but never answers
        listener.bind(str(tmp_path / "hangs"))
        listener.listen()
        assert not DaemonClient(str(tmp_path / "hangs"), timeout_s=0.05).is_live()

"""The load is open: what a server does not answer in time is not left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.serving.load import Answer, Call, Connection, Load, between, latency

CALL = Call("/", b"{}")


@contextmanager
def server(gate: threading.Event) -> Iterator[str]:
    """Answers while `gate` is open."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            gate.wait(30)
            self.send_response(200)
            self.send_header("Content-Length", "24")
            self.end_headers()
            self.wfile.write(b'{"model_version": "one"}')

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()


def test_a_stall_delays_all_requests_that_are_due_meanwhile():
    gate = threading.Event()
    with server(gate) as address:
        with Load(address, CALL, rate=100, connections=2) as load:
            time.sleep(0.5)  # the stall itself
            gate.set()
        answers = load.answers
    assert not any(answer.failed for answer in answers)
    assert len({answer.connection for answer in answers}) == 2
    # With two connections a closed load would have had two requests on their way; all 50 of this time waited.
    assert sum(answer.latency_s > 0.1 for answer in answers) >= 30
    assert max(answer.latency_s for answer in answers) >= 0.5


def test_a_server_that_is_gone_fails_requests_without_ending_the_load():
    gate = threading.Event()
    gate.set()
    with server(gate) as address:
        connection = Connection(address)
        assert connection.ask(CALL).version == "one"
        connection.close()
    answer = connection.ask(CALL)
    assert (answer.failed, answer.status) == (True, 0)


def test_latency_counts_from_when_a_request_was_due():
    answers = [Answer(0, due, due + 1, due + 2, 200, b"") for due in range(100)]
    assert latency(answers).p50 == 2000
    assert len(between(answers, 10, 20)) == 13  # those that were still under way at 10, too
    with pytest.raises(ValueError, match="no request"):
        latency([])

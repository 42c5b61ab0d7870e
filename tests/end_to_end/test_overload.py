"""Clients that hold up connections, heads and bodies: the daemon stays small and goes on answering."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults.crowd import HALF_A_HEAD, MIB, Crowd, length
from benchmarks.faults.crowd import crowd as crowd_of
from service.ipc.shared_memory import SHARES
from tests.support.daemon import Daemon, eventually, running
from tests.support.requests import image_request
from tests.support.tasks import Task

HEAD = HALF_A_HEAD % b"digits"


@contextlib.contextmanager
def crowd(daemon: Daemon) -> Iterator[Crowd]:
    with crowd_of(daemon.status()["address"]) as made:
        yield made


def status_of(connection: socket.socket) -> int:
    """Return the status of the response to what was sent, 0 if the connection was closed without one."""
    with contextlib.suppress(ConnectionError):
        head = connection.recv(100)
        return int(head.split()[1]) if head else 0
    return 0


def refused(daemon: Daemon, reason: str) -> float:
    return daemon.metric(f'edged_http_refused_total{{reason="{reason}"}}') or 0.0


def answers(daemon: Daemon, task: Task) -> None:
    """Check that the daemon answers over both sockets."""
    assert daemon.get("/edged/v1/status").json()["ready"]
    assert daemon.get("/v2/health/ready").status_code == 200
    with daemon.tcp() as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.post("/v2/models/digits/infer", content=image_request(task)).status_code == 200


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    serve = {"head_timeout_s": 3, "max_body_bytes": 7 * MIB, "max_json_bytes": 16_384, "deadline_ms": 2000}
    with running(tmp_path_factory.mktemp("small"), task.calibration, most_files=330, serve=serve) as daemon:
        daemon.put_live(task.first)
        yield daemon


def heads_that_do_not_end(daemon: Daemon, task: Task, count: int) -> None:
    before = refused(daemon, "slow_head")
    with crowd(daemon) as slow:
        made = slow.open(count, HEAD)
        answers(daemon, task)
        assert {status_of(connection) for connection in made} == {408}
        eventually(lambda: refused(daemon, "slow_head") == before + count, "all are counted")
        answers(daemon, task)


def connections_without_requests(daemon: Daemon, task: Task, count: int, files: int) -> None:
    assert "at most" in daemon.log.read_text()  # it says how many connections the descriptors suffice for
    with crowd(daemon) as idle:
        idle.open(count)
        eventually(lambda: refused(daemon, "idle") > 0, "some were closed")
        answers(daemon, task)
        opened = daemon.metric('edged_http_connections{listener="tcp"}')
        assert opened is not None
        assert 8 <= opened < files
        assert refused(daemon, "descriptors") == 0


def bodies_that_do_not_end(daemon: Daemon, task: Task, count: int, size: int, most: int) -> None:
    """Let clients send all but the last byte of large bodies."""
    before = refused(daemon, "body_memory") + refused(daemon, "slow_body")
    with crowd(daemon) as slow:
        slow.open(count, HEAD + length(size))
        slow.push(bytes(size - 1))
        assert daemon.rss_bytes() < most
        arriving = daemon.metric("edged_http_body_bytes")
        assert arriving is not None
        assert arriving <= daemon.config["serve"].get("max_body_bytes", 64 * MIB)
        answers(daemon, task)  # there is room for a small body
        eventually(
            lambda: refused(daemon, "body_memory") + refused(daemon, "slow_body") >= before + count - SHARES,
            "all are refused but those that have room, for which nobody waits any more",
        )
        assert daemon.rss_bytes() < most
    eventually(lambda: daemon.metric("edged_http_body_bytes") == 0, "the memory is free again")
    answers(daemon, task)


def test_heads_that_do_not_end(daemon: Daemon, task: Task) -> None:
    heads_that_do_not_end(daemon, task, 40)


def test_connections_without_requests(daemon: Daemon, task: Task) -> None:
    connections_without_requests(daemon, task, 120, 330)


def test_bodies_that_do_not_end(daemon: Daemon, task: Task) -> None:
    bodies_that_do_not_end(daemon, task, 20, 6 * MIB, 80 * MIB)


@pytest.mark.parametrize("count", [1, 30])
def test_bodies_that_do_not_begin(daemon: Daemon, task: Task, count: int) -> None:
    """One byte each of the largest bodies takes no memory from small requests, nor from large ones for long."""
    before = refused(daemon, "slow_body")
    with crowd(daemon) as stuck:
        stuck.open(count, HEAD + length(7 * MIB) + b"1")
        eventually(lambda: daemon.metric("edged_http_body_bytes") == min(count, 7) * MIB, "what is reserved is shown")
        for _ in range(3):
            answers(daemon, task)
        if count == 1:
            assert refused(daemon, "slow_body") == before

        def large() -> int:
            fields = {"Content-Type": "image/jpeg"}
            return daemon.post("/v2/models/digits/infer", content=bytes(5 * MIB), headers=fields).status_code

        eventually(lambda: large() == 400, "a large body has room; it is no image")
    eventually(lambda: daemon.metric("edged_http_body_bytes") == 0, "the memory is free again")


def test_json_that_is_too_large(daemon: Daemon) -> None:
    for content in (b"1" * 20_000, (b"1" * 1000 for _ in range(20))):
        answer = daemon.post("/v2/models/digits/infer", content=content)
        assert answer.status_code == 413
        reason = json.loads(answer.text)["error"]
        assert "serve.max_json_bytes = 16384" in reason
        assert "binary tensor data extension" in reason
    fields = {"Inference-Header-Content-Length": "0"}
    answer = daemon.post("/v2/models/digits/infer", content=b"1" * 20_000, headers=fields)
    assert (answer.status_code, "image" in answer.text) == (400, True)  # bytes may be more


def test_a_larger_limit_of_bodies_applies_with_a_reload(daemon: Daemon) -> None:
    fields = {"Content-Type": "image/jpeg"}
    for limit, status in ((7, 413), (9, 400), (7, 413)):
        daemon.config["serve"]["max_body_bytes"] = limit * MIB
        daemon.reload()
        answer = daemon.post("/v2/models/digits/infer", content=bytes(8 * MIB), headers=fields)
        assert answer.status_code == status  # it is no image
    assert "only changes with a restart" not in daemon.log.read_text()


def test_a_body_that_is_too_slow(daemon: Daemon) -> None:
    before = refused(daemon, "slow_body")
    daemon.config["serve"]["body_timeout_s"] = 0.5
    daemon.reload()
    with crowd(daemon) as slow:
        (connection,) = slow.open(1, HEAD + b"Content-Length: 100\r\n\r\n{")
        assert status_of(connection) == 408
    eventually(lambda: refused(daemon, "slow_body") == before + 1, "it is counted")


def test_the_log_stays_short(daemon: Daemon) -> None:
    """After all of the above."""
    log = daemon.log.read_text()
    assert 1 <= log.count("the HTTP server limits its clients") <= 5  # one a minute
    assert "Traceback" not in log


@pytest.mark.slow
def test_500_heads_that_do_not_end(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration, serve={"head_timeout_s": 3}) as daemon:
        daemon.put_live(task.first)
        heads_that_do_not_end(daemon, task, 500)


@pytest.mark.slow
def test_1500_connections_without_requests(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration, most_files=1024) as daemon:
        daemon.put_live(task.first)
        connections_without_requests(daemon, task, 1500, 1024)


@pytest.mark.slow
def test_300_bodies_of_60_mb_that_do_not_end(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration, serve={"deadline_ms": 2000}) as daemon:
        daemon.put_live(task.first)
        bodies_that_do_not_end(daemon, task, 300, 60_000_000, 128 * MIB)

"""Who is let in by a running daemon: hosts and sites that requests name, and those who guess tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.daemon.guesses import LONGEST_S, PER_ADDRESS
from service.http.refusals import LOG_EVERY_S
from tests.support.daemon import Daemon, eventually, running
from tests.support.tasks import Task

PAUSE = "/edged/v1/models/digits/pause"
RIGHT = {"Authorization": "Bearer s3cret"}


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "token").write_text("s3cret\n")
    serve = {"token_file": str(folder / "token"), "hosts": ["proxy.example"]}
    with running(folder, task.calibration, serve=serve) as daemon:
        start = time.monotonic()
        yield daemon
        log = daemon.log.read_text()
        minutes = (time.monotonic() - start) / LOG_EVERY_S
        assert 1 <= log.count("the HTTP server limits its clients") <= 1 + minutes  # one a minute
        assert "Traceback" not in log


def refused(daemon: Daemon, reason: str) -> float:
    return daemon.metric(f'edged_http_refused_total{{reason="{reason}"}}') or 0.0


def test_a_name_that_is_not_the_daemons_is_refused_over_tcp(daemon: Daemon) -> None:
    targets = ["/", "/metrics", "/v2/health/live", "/nowhere", "/edged/v1/status"]
    with daemon.tcp() as client:
        for target in targets:
            answer = client.get(target, headers={"Host": "rebound.example:8080"})
            assert answer.status_code == 421, target
            assert "Host has value 'rebound.example:8080'" in answer.json()["error"]
            assert "serve.hosts" in answer.json()["error"]
        inference = client.post("/v2/models/digits/infer", headers={"Host": "rebound.example"}, json={})
        assert inference.status_code == 421
        for host in ("localhost", "127.0.0.1:1", "[::1]", "proxy.example:443"):
            assert client.get("/v2/health/live", headers={"Host": host}).status_code == 200
    assert daemon.get("/v2/health/live").status_code == 200  # the UNIX socket, with a name that means nothing
    assert refused(daemon, "host") == len(targets) + 1


def test_hosts_apply_with_a_reload(daemon: Daemon) -> None:
    before = daemon.config["serve"]["hosts"]
    try:
        for hosts, status in ((["*"], 200), (before, 421)):
            daemon.config["serve"]["hosts"] = hosts
            daemon.reload()
            with daemon.tcp() as client:
                assert client.get("/metrics", headers={"Host": "rebound.example"}).status_code == status
    finally:
        daemon.config["serve"]["hosts"] = before


def test_a_page_of_another_site_may_only_ask_for_inference(daemon: Daemon) -> None:
    with daemon.tcp() as client:
        own = str(client.base_url).rstrip("/")
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            (own, 200),
            ("https://proxy.example", 200),
        ):
            assert client.get("/edged/v1/status", headers={"Origin": origin}).status_code == status
            assert client.post(PAUSE, headers={**RIGHT, "Origin": origin}).status_code == status
            assert client.post("/v2/models/digits/infer", headers={"Origin": origin}, json={}).status_code == 503
    assert refused(daemon, "origin") == 4


def test_wrong_tokens_are_slowed_down_and_the_right_one_is_not(daemon: Daemon) -> None:
    """All from one address."""
    count = 30

    def guess(number: int) -> int:
        with daemon.tcp() as client:
            return client.post(PAUSE, headers={"Authorization": f"Bearer guess-{number}"}).status_code

    with ThreadPoolExecutor(count) as pool:
        guesses = [pool.submit(guess, number) for number in range(count)]
        eventually(lambda: refused(daemon, "token") > 0, "some are refused")
        with daemon.tcp() as client:
            assert client.post(PAUSE, headers=RIGHT).status_code == 200
        statuses = [each.result() for each in guesses]
    assert set(statuses) == {403, 429}
    assert statuses.count(403) >= PER_ADDRESS.at_once + LONGEST_S - 1
    assert statuses.count(429) == refused(daemon, "token")
    with daemon.tcp() as client:
        answer = client.post(PAUSE)
        assert (answer.status_code, answer.json()["code"]) == (403, "permission")  # none is no guess

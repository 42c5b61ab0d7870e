"""Requests while generations change: none is lost, none fails, the connection stays."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.daemon import TIMEOUT_S, children, eventually, running
from tests.support.requests import Client, image_request
from tests.support.tasks import Task


@pytest.mark.parametrize("swap", ["availability", "resource"])
def test_a_swap_under_traffic(task: Task, tmp_path: Path, swap: str) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.config["models"][0]["swap"] = swap
        assert daemon.stop() == 0
        daemon.start()
        daemon.put_live(task.first)
        clients = [Client(daemon.status()["address"], image_request(task)) for _ in range(2)]
        for client in clients:
            client.start()
        eventually(lambda: all(len(client.answers) > 20 for client in clients), "traffic")
        daemon.put_live(task.second)
        counts = [len(client.answers) for client in clients]
        eventually(lambda: all(len(c.answers) > n + 20 for c, n in zip(clients, counts, strict=True)), "more traffic")
        for client in clients:
            answers = client.end()
            good = [version for status, version in answers if status == 200]
            assert set(good) == {"1", "2"}
            assert good == sorted(good)  # never back to the old one
            assert len(good) == len(answers)  # by "resource", they waited for the new one
        assert daemon.metric(f'edged_swaps_total{{model="digits",policy="{swap}"}}') == 2
        assert daemon.metric('edged_swap_duration_seconds_count{model="digits"}') == 2


def test_sigterm_answers_what_was_asked(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        body = json.loads(image_request(task))
        body["inputs"][0] |= {"shape": [128], "data": body["inputs"][0]["data"] * 128}
        asked = 24
        answers: list[int] = []
        address = daemon.status()["address"]

        def ask() -> None:
            parts = urlsplit(address)
            assert parts.hostname is not None
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
            connection.request("POST", "/v2/models/digits/infer", json.dumps(body))
            answers.append(connection.getresponse().status)
            connection.close()

        askers = [threading.Thread(target=ask) for _ in range(asked)]
        (generation,) = children(daemon, "service.inference.main")
        generation.suspend()
        for asker in askers:
            asker.start()
        in_flight = 'edged_inference_requests_in_flight{model="digits"}'
        eventually(lambda: daemon.metric(in_flight) == asked, "all are under way")
        assert daemon.process is not None
        daemon.process.terminate()
        eventually(lambda: "stopping: no new requests" in daemon.log.read_text(), "it stops")
        generation.resume()
        assert daemon.process.wait(TIMEOUT_S) == 0
        for asker in askers:
            asker.join()
        assert answers == [200] * asked


def test_too_many_and_too_slow(task: Task, tmp_path: Path) -> None:
    serve = {"port": 0, "queue": 1, "deadline_ms": 10_000}
    with running(tmp_path, task.calibration, serve=serve) as daemon:
        daemon.put_live(task.first)
        clients = [Client(daemon.status()["address"], image_request(task)) for _ in range(4)]
        for client in clients:
            client.start()
        eventually(lambda: all(any(status == 429 for status, _ in c.answers) for c in clients), "too many", 60)
        answers = [answer for client in clients for answer in client.end()]
        assert {status for status, _ in answers} == {200, 429}

        daemon.config["serve"]["deadline_ms"] = 20
        daemon.reload()
        (generation,) = children(daemon, "service.inference.main")
        generation.suspend()
        answer = daemon.post("/v2/models/digits/infer", content=image_request(task))
        generation.resume()
        assert (answer.status_code, "within 0.02 s" in answer.json()["error"]) == (504, True)

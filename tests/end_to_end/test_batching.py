"""Several clients at once, computed together by the real daemon: each gets what it would get alone."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.daemon import Daemon, eventually, running
from tests.support.requests import TOO_LARGE, Client, image_request
from tests.support.tasks import DetectionTask, Task

CLIENTS = 8
BATCHING = {"max_batch": 4, "max_delay_ms": 20}


def batches(daemon: Daemon, model: str = "digits") -> tuple[float, float]:
    """Forward passes and the images in them."""
    names = [f'edged_inference_batch_size_{what}{{model="{model}"}}' for what in ("count", "sum")]
    count, images = (daemon.metric(name) or 0 for name in names)
    return count, images


def ask_all(daemon: Daemon, model: str, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """All of them, by several clients at once."""
    with daemon.tcp() as client, ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda body: client.post(f"/v2/models/{model}/infer", json=body), bodies))


def image_body(path: Path, identity: str) -> dict[str, Any]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"id": identity, "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}]}


def assert_as_alone(daemon: Daemon, model: str, bodies: list[dict[str, Any]]) -> None:
    alone = [daemon.post(f"/v2/models/{model}/infer", json=body).json() for body in bodies]
    passes, images = batches(daemon, model)
    together = [response.json() for response in ask_all(daemon, model, bodies)]
    more_passes, more_images = batches(daemon, model)
    assert more_images - images == len(bodies)
    assert more_passes - passes < len(bodies)  # some were computed together
    for body, got, expected in zip(bodies, together, alone, strict=True):
        assert got["id"] == body["id"]
        for ours, theirs in zip(got["outputs"], expected["outputs"], strict=True):
            assert ours["shape"] == theirs["shape"]
            if ours["datatype"] != "BYTES":
                np.testing.assert_allclose(ours["data"], theirs["data"], rtol=1e-3, atol=1e-3)


def test_answers_and_errors(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.config["models"][0]["batching"] = BATCHING
        daemon.reload()  # counts from the next generation on
        daemon.put_live(task.first)
        bodies = [image_body(path, f"r{n}") for n, path in enumerate(sorted(task.test.rglob("*.png"))[::6])]
        assert_as_alone(daemon, "digits", bodies)

        mixed = [bodies[0], TOO_LARGE, {"inputs": []}, bodies[1]] * 6
        answers = ask_all(daemon, "digits", mixed)
        assert [answer.status_code for answer in answers] == [200, 400, 400, 200] * 6


@pytest.mark.slow
def test_a_swap_under_traffic(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.config["models"][0]["batching"] = BATCHING
        daemon.reload()
        daemon.put_live(task.first)
        clients = [Client(daemon.status()["address"], image_request(task)) for _ in range(4)]
        for client in clients:
            client.start()
        eventually(lambda: all(len(client.answers) > 20 for client in clients), "traffic")
        daemon.put_live(task.second)
        counts = [len(client.answers) for client in clients]
        eventually(lambda: all(len(c.answers) > n + 20 for c, n in zip(clients, counts, strict=True)), "more traffic")
        for client in clients:
            answers_of = client.end()
            assert {status for status, _ in answers_of} == {200}
            versions = [version for _, version in answers_of]
            assert versions == sorted(versions)
            assert set(versions) == {"1", "2"}
        assert daemon.stop() == 0


@pytest.mark.slow
def test_a_detector(detection_task: DetectionTask, tmp_path: Path) -> None:
    model = {
        "name": "shapes",
        "calibration": {"dir": str(detection_task.calibration)},
        "input": {"size": 64},
        "quantization": {"bits": 8},
        "batching": BATCHING,
    }
    with running(tmp_path, detection_task.calibration, models=[model]) as daemon:
        daemon.put_live(detection_task.first, model="shapes")
        images = sorted((detection_task.test / "images").iterdir())
        assert_as_alone(daemon, "shapes", [image_body(path, f"r{n}") for n, path in enumerate(images)])
        found = json.loads(daemon.infer(images[0], model="shapes").content)["outputs"]
        assert found[-1]["data"] != [0]  # there was something to find

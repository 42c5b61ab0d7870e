"""A real Prometheus scrapes a live daemon through drops, a rejection and a rollback; every panel shows something."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from service.metrics.registry import Metrics
from tests.support import scenes
from tests.support.boards import jetson
from tests.support.daemon import Daemon, eventually, running, time_out
from tests.support.dashboard import DASHBOARD, PANELS
from tests.support.prometheus import Prometheus, needs_prometheus, prometheus, scrape_config
from tests.support.requests import TENSOR
from tests.support.tasks import DetectionTask, Task

pytestmark = [pytest.mark.slow, needs_prometheus]


@dataclass(frozen=True)
class Story:
    """What Prometheus saw.

    Attributes:
        server: It.
        digest: Of the file that is live in the end, 12 hex digits.
        start: Of the story, seconds since 1970.
        end: Likewise.
    """

    server: Prometheus
    digest: str
    start: float
    end: float

    def promql(self, query: str) -> str:
        """As Grafana fills it in when everything is chosen and the whole story is shown."""
        filled = query.replace('"$instance"', '".*"').replace('"$model"', '".*"')
        filled = filled.replace("$__rate_interval", "10s").replace("$__range", f"{round(self.end - self.start)}s")
        assert "$" not in filled
        return filled


@pytest.fixture(scope="module")
def story(task: Task, detection_task: DetectionTask, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    digits = {
        "name": "digits",
        "calibration": {"dir": str(task.calibration)},
        "input": {"size": 8, "resize": 8},
        "capture": {"share": 1.0},
        "drift": {"share": 1.0},
    }
    shapes = {
        "name": "shapes",
        "calibration": {"dir": str(detection_task.calibration)},
        "input": {"size": scenes.SIDE},
        "quantization": {"bits": 8},
    }
    board = Metrics(CollectorRegistry(), "1.2.3", jetson(folder / "jetson"), root=folder / "jetson")
    exporter, _ = start_http_server(0, "127.0.0.1", board.registry)
    worker = {"retry_s": 0.1, "memory_max": "4GiB"}
    try:
        serve = {"deadline_ms": 3000}  # for requests that fail by it
        with running(folder, task.calibration, models=[digits, shapes], worker=worker, serve=serve) as daemon:
            targets = {
                daemon.status()["address"].removeprefix("http://"): "camera",
                f"127.0.0.1:{exporter.server_port}": "jetson",
            }
            with prometheus(folder / "prometheus", scrape_config("prometheus.yml", targets)) as server:
                start = time.time()
                seen(server, 'up{instance="camera"} == 1')
                first = live_through(daemon, task, detection_task, server)
                yield Story(server, first, start - 1, time.time())
    finally:
        exporter.shutdown()
        exporter.server_close()


def live_through(daemon: Daemon, task: Task, detection_task: DetectionTask, server: Prometheus) -> str:
    """Drops, a rejection, requests good and bad, a rollback; the digest of what is live in the end."""
    bad = daemon.folder / "bad.pt"
    bad.write_bytes(b"no checkpoint at all")
    image = next(task.test.rglob("*.png"))
    digest = str(daemon.put_live(task.first)["sha256"])[:12]
    daemon.put_live(detection_task.first, model="shapes")
    drift = 'edged_calibration_drift{model="digits"}'  # of 128 that were looked at, for which there is not always time
    eventually(lambda: daemon.infer(image).status_code == 200 and daemon.metric(drift), "a drift")
    seen(server, "edged_calibration_drift > 0")
    daemon.drop(bad)
    assert daemon.update_of("bad.pt")["state"] == "REJECTED"
    daemon.put_live(task.second)
    eventually(lambda: _failing_often(daemon, image, server), "a fifth of the requests failed")
    assert daemon.post("/edged/v1/models/digits/rollback").json()["to"] == 1
    # Seen for some seconds, so that a graph with a point a second has one of them.
    seen(server, 'count_over_time(ALERTS{alertname="EdgedRolledBack", alertstate="firing"}[1m]) >= 3')
    return digest


def _failing_often(daemon: Daemon, image: Path, server: Prometheus) -> bool:
    """One more good request and some more bad; whether Prometheus has seen that many of the last ones fail.

    A rate needs two samples of which one is larger, and the good requests of before have to be outweighed.
    """
    assert daemon.infer(image).status_code == 200
    time_out(daemon, TENSOR, 5)
    failed = 'sum(rate(edged_inference_requests_total{model="digits", code="504"}[10s]))'
    answered = 'sum(rate(edged_inference_requests_total{model="digits"}[10s]))'
    return bool(server.query(f"{failed} / {answered} > 0.25"))


def seen(server: Prometheus, promql: str) -> None:
    eventually(lambda: server.query(promql), promql)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: re.sub(r"\W+", "-", panel["title"]))
def test_each_query_of_a_panel_returns_data(story: Story, panel) -> None:
    for target in panel["targets"]:
        promql = story.promql(target["expr"])
        if target.get("instant"):
            assert story.server.query(promql, story.end), promql
        else:
            assert story.server.numbers(promql, story.start, story.end), promql


@pytest.mark.parametrize("annotation", DASHBOARD["annotations"]["list"], ids=lambda annotation: annotation["name"])
def test_what_happened_is_marked(story: Story, annotation) -> None:
    assert max(story.server.numbers(story.promql(annotation["expr"]), story.start, story.end)) > 0


def expr(title: str) -> str:
    return str(next(panel["targets"][0]["expr"] for panel in PANELS if panel["title"] == title))


def test_the_figures_are_those_of_the_story(story: Story) -> None:
    live = story.server.values(story.promql(expr("Live generations")), "model", "generation", "digest", at=story.end)
    assert live["digits", "1", story.digest] == 1
    assert len(live) == 2
    reasons = story.server.values(story.promql(expr("Updates by reason")), "model", "result", "reason", at=story.end)
    assert reasons["digits", "committed", ""] >= 2
    assert reasons["digits", "rolled_back", "rollback"] >= 1
    assert [key[:2] for key in reasons if key[1] == "rejected"] == [("digits", "rejected")]
    assert max(story.server.numbers(story.promql(expr("Errors")), story.start, story.end)) > 0.2
    stages = story.server.values(story.promql(expr("Stages of an update")), "stage", at=story.end)
    assert stages["quantize",] > stages["publish",] > 0
    devices = story.server.query(story.promql(expr("Devices")), story.end)
    assert "NVIDIA Jetson Orin Nano Developer Kit" in [device["metric"].get("board") for device in devices]
    working = 'edged_worker_memory_bytes{instance="camera"}'
    assert max(story.server.numbers(working, story.start, story.end)) > 50e6
    assert story.server.values("edged_worker_memory_limit_bytes", "instance", at=story.end)["camera",] == 4 << 30
    hot = story.server.numbers(story.promql(expr("Temperature")), story.start, story.end)
    assert max(hot) == 52.406


def test_what_can_be_chosen_is_there(story: Story) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        (match,) = re.findall(r"label_values\((.+), (\w+)\)", variable["query"])
        values = story.server.get(f"label/{match[1]}/values", **{"match[]": story.promql(match[0])})
        assert values == {"instance": ["camera", "jetson"], "model": ["digits", "shapes"]}[match[1]]


def test_the_rules_are_evaluated(story: Story) -> None:
    groups = story.server.get("rules")["groups"]
    assert len(groups) == 5
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    firing = story.server.values('ALERTS{alertstate="firing"}', "alertname", "model", at=story.end)
    assert ("EdgedUpdateRejected", "digits") in firing
    assert ("EdgedRolledBack", "digits") in firing

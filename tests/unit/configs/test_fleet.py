"""Devices send to one Prometheus, as docs/fleet.md says: real agents, a real receiver, and the queries of that page."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, start_http_server

from service.metrics.registry import Metrics
from tests.support.daemon import eventually
from tests.support.prometheus import Prometheus, needs_prometheus, prometheus, scrape_config
from tests.support.repository import ROOT

DOCUMENT = ROOT / "docs" / "fleet.md"
OLD, NEW = "aa" * 32, "bb" * 32  # sha256 of two checkpoints


def documented(about: str) -> str:
    """The query that docs/fleet.md gives for a question."""
    (found,) = re.findall(rf"\| {re.escape(about)} \| `(.+)` \|", DOCUMENT.read_text())
    return str(found).replace("\\|", "|")  # a table needs its bars escaped


class Device:
    """What one device exports, over HTTP."""

    def __init__(self, name: str, digest: str, board: Path) -> None:
        self.name = name
        self.metrics = Metrics(CollectorRegistry(), "1.2.3", board)
        self.metrics.expect_model("cats")
        self.update(digest)
        self.server, _ = start_http_server(0, "127.0.0.1", self.metrics.registry)
        self.address = f"127.0.0.1:{self.server.server_port}"

    def update(self, digest: str) -> None:
        self.metrics.show_model("cats", 1, digest, 4, "torch")
        self.metrics.model_ready.labels("cats").set(1)
        self.metrics.last_success.labels("cats").set_to_current_time()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[list[Device]]:
    found = [Device(f"cam-{number}", digest, tmp_path) for number, digest in enumerate((OLD, OLD, NEW))]
    yield found
    for device in found:
        device.close()


@pytest.fixture
def fleet(tmp_path: Path, devices: list[Device]) -> Iterator[Prometheus]:
    """The receiver, and an agent on each device."""
    with contextlib.ExitStack() as held:
        receiving = scrape_config("prometheus.yml", {})
        flag = "--web.enable-remote-write-receiver"
        central = held.enter_context(prometheus(tmp_path / "central", receiving, flag))
        for device in devices:
            held.enter_context(agent(tmp_path / device.name, device, central))
        yield central


def agent(folder: Path, device: Device, central: Prometheus) -> contextlib.AbstractContextManager[Prometheus]:
    config: dict[str, Any] = scrape_config("agent.yml", {})
    # Like the file's own job: the address alone, the same on every device.
    config["scrape_configs"][0]["static_configs"] = [{"targets": [device.address]}]
    config["remote_write"][0]["url"] = f"http://{central.address}/api/v1/write"
    return prometheus(folder, config, "--enable-feature=agent,expand-external-labels", HOSTNAME=device.name)


@needs_prometheus
def test_a_central_prometheus_knows_which_device_runs_which_model(fleet: Prometheus, devices: list[Device]):
    which = documented("Which device runs what?")
    labels = ("instance", "model", "generation", "digest")
    expected = {(d.name, "cats", "1", digest[:12]): 1.0 for d, digest in zip(devices, (OLD, OLD, NEW), strict=True)}
    eventually(lambda: fleet.values(which, *labels) == expected, "all devices")
    # Whatever is sent is labelled with the device and with nothing else of the way there.
    assert set(fleet.query('up{job="edged"}')[0]["metric"]) == {"__name__", "instance", "job"}

    answering = fleet.values(documented("Which of these generations are ready?"), *labels)
    assert answering == expected
    hardware = fleet.values(documented("Which hardware and which version of edged?"), "instance", "version")
    assert hardware == {(device.name, "1.2.3"): 1 for device in devices}
    count = fleet.values(documented("How many devices run which file?"), "model", "digest")
    assert count == {("cats", OLD[:12]): 2, ("cats", NEW[:12]): 1}
    behind = documented("Which devices do not run this file yet?").replace("DIGEST", NEW[:12]).replace("MODEL", "cats")
    assert fleet.values(behind, "instance") == {("cam-0",): 1, ("cam-1",): 1}

    devices[0].update(NEW)
    eventually(lambda: fleet.values(behind, "instance") == {("cam-1",): 1}, "the update is seen")
    devices[1].metrics.count_update("cats", "rejected", "gate")
    failing = documented("Where did updates not go live today?")
    eventually(lambda: set(fleet.values(failing, "instance", "reason")) == {("cam-1", "gate")}, "the rejection is seen")
    # The rules see devices as if they were scraped.
    firing = 'ALERTS{alertname="EdgedUpdateRejected", alertstate="firing"}'
    eventually(lambda: set(fleet.values(firing, "instance")) == {("cam-1",)}, "the alert")


@pytest.mark.slow
@needs_prometheus
def test_samples_that_could_not_be_sent_are_sent_later(tmp_path: Path, devices: list[Device]):
    flag, config, device = "--web.enable-remote-write-receiver", scrape_config("prometheus.yml", {}), devices[0]
    with contextlib.ExitStack() as held:
        with prometheus(tmp_path / "central", config, flag) as central:
            sender = held.enter_context(agent(tmp_path / "agent", device, central))
            eventually(lambda: central.values("up", "instance") == {("cam-0",): 1}, "the device")
        device.update(NEW)  # while nobody listens
        scraped = appended(sender)
        eventually(lambda: appended(sender) > 2 * scraped, "more scrapes")
        device.update(OLD)
        again = held.enter_context(prometheus(tmp_path / "central", config, flag, listen=central.address))
        meanwhile = f'count_over_time(edged_model_info{{instance="cam-0", digest="{NEW[:12]}"}}[5m])'
        eventually(lambda: again.query(meanwhile), "what happened meanwhile")


def appended(sender: Prometheus) -> float:
    """Samples that an agent has scraped."""
    text = httpx.get(f"http://{sender.address}/metrics", timeout=30).text
    return sum(map(float, re.findall(r"^prometheus_agent_samples_appended_total\S* (\S+)$", text, re.MULTILINE)))

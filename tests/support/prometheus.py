"""The real Prometheus and promtool, as processes of their own."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.daemon import NO_CERTIFICATES, eventually
from tests.support.repository import ROOT

CONFIGS = ROOT / "configs" / "prometheus"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus here: apt-get install prometheus")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: apt-get install prometheus")

_LISTENING = re.compile(r'msg="Listening on" address=(\S+)')


def promtool(*arguments: str | Path, stdin: bytes = b"") -> str:
    """Run promtool and return its output; errors and mere warnings fail the test."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *arguments], input=stdin, capture_output=True, cwd=CONFIGS)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def scrape_config(name: str, targets: Mapping[str, str]) -> dict[str, Any]:
    """Return a config of configs/prometheus with other addresses that scrapes and evaluates every second.

    Args:
        name: Of the file.
        targets: By address: what is to be called `instance`.
    """
    config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    config["global"] |= {"scrape_interval": "1s"}
    if "rule_files" in config:
        config["global"]["evaluation_interval"] = "1s"
        config["rule_files"] = [str(CONFIGS / file) for file in config["rule_files"]]
    (job,) = config["scrape_configs"]
    assert len(job["static_configs"]) == 1
    job["static_configs"] = [{"targets": [address], "labels": {"instance": i}} for address, i in targets.items()]
    return config


class Prometheus:
    """Running server or agent.

    Attributes:
        address: Host and port.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the data of an API call."""
        answer = httpx.get(
            f"http://{self.address}/api/v1/{path}", params=parameters, timeout=30, verify=NO_CERTIFICATES
        ).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, promql: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the samples at a time, None for now: {"metric": labels, "value": [time, text]}."""
        when = {} if at is None else {"time": at}
        found: list[dict[str, Any]] = self.get("query", query=promql, **when)["result"]
        return found

    def values(self, promql: str, *labels: str, at: float | None = None) -> dict[tuple[str, ...], float]:
        """Return the samples by the given labels."""
        return {tuple(s["metric"].get(x, "") for x in labels): float(s["value"][1]) for s in self.query(promql, at)}

    def numbers(self, promql: str, start: float, end: float, step_s: float = 1.0) -> list[float]:
        """Return all values that a graph would show, except NaN."""
        series = self.get("query_range", query=promql, start=start, end=end, step=step_s)["result"]
        return [value for s in series for _, text in s["values"] if not math.isnan(value := float(text))]


@contextlib.contextmanager
def prometheus(
    folder: Path, config: Mapping[str, Any], *flags: str, listen: str = "127.0.0.1:0", **environment: str
) -> Iterator[Prometheus]:
    """Run a server or agent; show its log if the test fails.

    Args:
        folder: For its config, its log and its data.
        config: As of its config file.
        flags: Of its command line, besides those that say where and with what.
        listen: Host and port; by default any free port.
        environment: Variables besides those of this process.
    """
    assert PROMETHEUS is not None
    folder.mkdir(exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    kind = "agent" if any("agent" in flag for flag in flags) else "tsdb"
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.{kind}.path={folder / 'data'}",
        f"--web.listen-address={listen}",
        *flags,
    ]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, env=os.environ | environment)
    try:
        found = eventually(lambda: _LISTENING.search(log.read_text()) or process.poll() is not None, "listening")
        assert not isinstance(found, bool), "prometheus ended"
        server = Prometheus(found[1])
        ready = f"http://{server.address}/-/ready"
        eventually(lambda: httpx.get(ready, timeout=30, verify=NO_CERTIFICATES).status_code == 200, "ready")
        yield server
    except BaseException:
        sys.stderr.write(log.read_text(errors="replace"))
        raise
    finally:
        process.kill()  # asked to end, an agent tries for a minute to send what is left
        process.wait(60)

"""Measure gains and costs of dynamic batching: a real daemon serves the same network with and without it, in one run.

Clients keep their connections and send the next request as soon as they get a response. The settings take turns every
few seconds, so that other work of the machine affects all of them.

Usage: EDGED_DATA=... python -m benchmarks.batching [--seconds 3] [--rounds 3]
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import yaml

from benchmarks.demo.daemon import daemon, submit
from benchmarks.options import parser_of
from benchmarks.quantization.networks import NETWORKS, data_root
from benchmarks.serving.protocol import as_binary
from service.ipc.messages import Body

SIDES = {"resnet20": 32, "resnet18": 224}
SETTINGS: dict[str, dict[str, float]] = {
    "off": {},
    "on": {"max_batch": 8},
    "on-delay": {"max_batch": 8, "max_delay_ms": 5},
}
CLIENTS = (1, 4, 16)


@dataclass(frozen=True)
class Target:
    """A model and the request that is sent to it.

    Attributes:
        address: URL of the daemon.
        model: Name of the model.
        body: Body of the request.
    """

    address: str
    model: str
    body: Body


def main() -> None:
    """Start the daemon, publish every network with every setting, and print a table."""
    parser = parser_of(__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds of load in each round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each setting")
    options = parser.parse_args()
    networks = [name for name in SIDES if (data_root() / "weights" / NETWORKS[name].file).exists()]
    folder = Path(tempfile.mkdtemp(prefix="edged-batching-"))
    config = write_config(folder, networks)
    with daemon(config) as address, ProcessPoolExecutor(1, get_context("spawn")) as clients:
        for network in networks:
            for setting in SETTINGS:
                submit(config, f"{network}-{setting}", data_root() / "weights" / NETWORKS[network].file)
        print(f"{'':25}{'clients':>8} {'batching':10}{'requests/s':>11}{'ratio':>7}{'p50 ms':>9}{'p99 ms':>9}")
        for network in networks:
            for kind, body in bodies(network).items():
                for count in CLIENTS:
                    targets = {name: Target(address, f"{network}-{name}", body) for name in SETTINGS}
                    found = compare(clients, targets, count, options)
                    show(f"{network}, {kind}", count, found)


def write_config(folder: Path, networks: list[str]) -> Path:
    """Write a config with each network and each setting, and return its path."""
    models = [
        {
            "name": f"{network}-{setting}",
            "calibration": {"dir": str(data_root() / NETWORKS[network].calibration), "images": 64},
            "quantization": {"recipe": "fast"},
            "batching": batching,
            "probation_s": 0,
        }
        for network in networks
        for setting, batching in SETTINGS.items()
    ]
    path = folder / "edged.yaml"
    path.write_text(yaml.safe_dump({"state_dir": str(folder / "state"), "models": models, "serve": {"port": 0}}))
    return path


def bodies(network: str) -> dict[str, Body]:
    """Return a request with a prepared tensor, and one with an image file."""
    side = SIDES[network]
    image = np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)
    photos = (path for path in (data_root() / NETWORKS[network].test).rglob("*") if path.is_file())
    photo = min(photos)
    return {"FP32 binary": as_binary("input", "FP32", image), "JPEG": Body(photo.read_bytes(), 0)}


def compare(
    clients: ProcessPoolExecutor, targets: dict[str, Target], count: int, options: argparse.Namespace
) -> dict[str, tuple[float, list[float]]]:
    """Return for each setting the requests per second (median of the rounds) and all latencies in seconds."""
    rates: dict[str, list[float]] = {name: [] for name in targets}
    latencies: dict[str, list[float]] = {name: [] for name in targets}
    for turn in range(options.rounds + 1):
        for name, target in targets.items():
            seconds, taken = clients.submit(load, target, count, options.seconds if turn else 0.5).result()
            if turn:  # the first round warms up
                rates[name].append(len(taken) / seconds)
                latencies[name] += taken
    return {name: (statistics.median(rates[name]), latencies[name]) for name in targets}


def load(target: Target, count: int, seconds: float) -> tuple[float, list[float]]:
    """Send requests with `count` clients at once; return the actual seconds in all, and those of each request."""
    taken: list[float] = []
    failures: list[str] = []
    start = time.perf_counter()

    def client() -> None:
        try:
            taken.extend(ask_until(target, start + seconds))
        except Exception as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} of {count} clients failed: {failures[0]}")
    return time.perf_counter() - start, taken


def ask_until(target: Target, end: float) -> list[float]:
    """Send requests one after another over one connection; return the seconds of each."""
    connection = http.client.HTTPConnection(urlsplit(target.address).netloc, timeout=60)
    headers = {"Inference-Header-Content-Length": str(target.body.json_bytes)}
    taken = []
    while (start := time.perf_counter()) < end:
        connection.request("POST", f"/v2/models/{target.model}/infer", target.body.content, headers)
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {answer}")
        taken.append(time.perf_counter() - start)
    connection.close()
    return taken


def show(label: str, count: int, found: dict[str, tuple[float, list[float]]]) -> None:
    """Print a line for each setting."""
    for name, (rate, latencies) in found.items():
        p50, p99 = (1000 * float(np.quantile(latencies, share)) for share in (0.5, 0.99))
        ratio = rate / found["off"][0]
        print(f"{label:25}{count:8} {name:10}{rate:11.0f}{ratio:7.2f}{p50:9.2f}{p99:9.2f}", flush=True)


if __name__ == "__main__":
    main()

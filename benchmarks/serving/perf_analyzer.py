"""NVIDIA's perf_analyzer as a client. Used by benchmarks.serving.

It is a program in older wheels of tritonclient, which need libraries of CUDA and of base64 that Triton's wheel contains
under names of its own. No GPU is needed.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving.payloads import PHOTO_SIZE, file_of, photo
from benchmarks.serving.peers.server import PERF_ANALYZER, missing, packages_of

AT_ONCE = 16
_LIBRARIES = ("libcudart*.so.12*", "libb64*.so.0d")
_REQUESTS = re.compile(r"Request count: (\d+)")
_DELAYED = re.compile(r"([\d.]+)% of the requests were delayed")


@dataclass(frozen=True)
class Report:
    """What perf_analyzer found.

    Attributes:
        rate: Requests per second.
        requests: Number of responses in the measurement.
        p50: Median latency in milliseconds; the time between the request and its response, not from when it was due.
        p99: The same of 99 %.
        delayed: Share of the requests that were sent later than planned, because all connections were waiting.
    """

    rate: float
    requests: int
    p50: float
    p99: float
    delayed: float


class PerfAnalyzer:
    """The program with its libraries and its requests: a tensor, its pixels and a JPEG file in turns.

    Args:
        peers: Folder with the virtual environments.
        scratch: Folder for files of its own.
        model: Name of the model.
        side: Side of its input, pixels.
    """

    def __init__(self, peers: Path, scratch: Path, model: str, side: int) -> None:
        self._program = peers / PERF_ANALYZER / "bin" / PERF_ANALYZER
        self._scratch = scratch
        self._model = model
        self._libraries = scratch / "libraries"
        self._libraries.mkdir()
        for pattern in _LIBRARIES:
            (library,) = (packages_of(peers, "triton") / "nvidia_pytriton.libs").glob(pattern)
            (self._libraries / _name_of(library)).symlink_to(library)
        self._requests = scratch / "requests.json"
        self._requests.write_text(json.dumps({"data": requests(side)}))

    def measure(self, address: str, transport: str, load: list[str], timeout_s: float) -> Report:
        """Send requests and return the measurement.

        Args:
            address: Host and port.
            transport: "http" or "grpc".
            load: Arguments that say how many requests at which rate.
            timeout_s: Time after which it is stopped.

        Raises:
            RuntimeError: It failed, for example because a request failed; the message ends with its output.
        """
        table = self._scratch / "report.csv"
        command = [str(self._program), "-m", self._model, "-u", address, "-i", transport, "-f", str(table)]
        command += ["--input-data", str(self._requests), "--max-threads", str(AT_ONCE), *load]
        environment = os.environ | {"LD_LIBRARY_PATH": str(self._libraries)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_s)
        if done.returncode:
            raise RuntimeError(f"perf_analyzer exited with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        return report_of(table.read_text(), done.stdout)


def without_perf_analyzer(peers: Path | None) -> str | None:
    """Return why perf_analyzer cannot be used, or None if it can be."""
    return missing(peers, PERF_ANALYZER) or missing(peers, "triton")


def requests(side: int) -> list[dict[str, dict[str, object]]]:
    """Return the inputs of the requests that are sent in turns, in the form that perf_analyzer reads."""
    pixels = np.ascontiguousarray(photo(side, side).transpose(2, 0, 1))
    file = file_of(photo(*PHOTO_SIZE), 80)
    element = len(file).to_bytes(4, "little") + file
    return [
        {"input": {"b64": _base64((pixels / 255 - 0.5).astype(np.float32).tobytes())}},
        {"pixels": {"b64": _base64(pixels.tobytes())}},
        {"image": {"b64": _base64(element), "shape": [1]}},
    ]


def report_of(table: str, output: str) -> Report:
    """Return the last measurement in a report and in the text that perf_analyzer printed.

    Raises:
        RuntimeError: There is no measurement.
    """
    rows = list(csv.DictReader(table.splitlines()))
    counts = _REQUESTS.findall(output)
    if not rows or not counts:
        raise RuntimeError(f"perf_analyzer measured nothing: {output[-2000:]}")
    delayed = _DELAYED.findall(output)
    row = rows[-1]
    p50, p99 = (float(row[f"{name} latency"]) / 1000 for name in ("p50", "p99"))
    rate = float(row["Inferences/Second"])
    return Report(rate, int(counts[-1]), p50, p99, float(delayed[-1]) / 100 if delayed else 0)


def _name_of(library: Path) -> str:
    """Return the name by which programs look for a library that a wheel contains with a digest in its name."""
    name, _, version = library.name.partition(".so.")
    return f"{re.split('[-.]', name)[0]}.so.{version.split('.')[0]}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

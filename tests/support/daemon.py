"""The real daemon as a process of its own, driven through its files, its signals and HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from tests.support.unix_transport import UnixTransport

T = TypeVar("T")

ENDS = {"COMMITTED", "REJECTED", "FAILED", "SUPERSEDED", "CANCELLED", "ROLLED_BACK"}
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a client that reads none starts a hundred times faster
_MARK = "TESTED_DAEMON"  # in the environment of a daemon and of all processes that it starts
TIMEOUT_S = 240.0  # for what takes a second or two on a machine that is not busy


def eventually(look: Callable[[], T], what: str, timeout_s: float = TIMEOUT_S) -> T:
    """Return the first result of `look` that is true; connection errors count as false."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(httpx.TransportError):
            if result := look():
                return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {timeout_s} s")


class Daemon:
    """A state folder with its config, on which the process can be started and ended repeatedly."""

    def __init__(self, folder: Path, calibration: Path, most_files: int | None = None, **settings: Any) -> None:
        self.folder = folder
        self._most_files = most_files  # the limit on open files, soft and hard; None for that of the tests
        self.prefix: tuple[str, ...] = ()  # of its command, such as that of tests.support.syscall_faults
        self.environment: dict[str, str] = {}  # besides that of the tests
        self.state = folder / "state"
        self.log = folder / "log"
        model = {
            "name": "digits",
            "calibration": {"dir": str(calibration)},
            "input": {"size": 8, "resize": 8},
            "quantization": {"bits": 4},
        }
        self.config: dict[str, Any] = {
            "state_dir": str(self.state),
            "models": [model],
            "watch": {"settle_s": 0.1, "rescan_s": 1},
            "log": {"level": "debug", "format": "human"},
            **settings,
            # One thread each, and a worker that need not wait for an idle processor: other tests run at the same time.
            "serve": {"port": 0, "threads": 1} | settings.get("serve", {}),
            "worker": {"retry_s": 0.1, "threads": 1, "nice": 0} | settings.get("worker", {}),
        }
        for configured in self.config["models"]:
            configured.setdefault("probation_s", 0)  # or every update would wait for its end
            # Or the outcome would depend on what is faster here.
            configured.setdefault("runtime", "onnxruntime")
            configured["quantization"] = {"activation_bits": None} | configured.get("quantization", {})
        self.process: subprocess.Popen[bytes] | None = None

    def write_config(self) -> Path:
        path = self.folder / "edged.yaml"
        path.write_text(yaml.safe_dump(self.config))
        return path

    def start(self) -> Daemon:
        """Start the daemon and wait until it is ready."""
        process = self.spawn()
        eventually(lambda: process.poll() is not None or self.get("/v2/health/ready").status_code == 200, "ready")
        assert process.poll() is None, "the daemon ended"
        return self

    def spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service.cli.main", "run", "--config", str(self.write_config())]
        if self._most_files is not None:
            command = ["prlimit", f"--nofile={self._most_files}:{self._most_files}", *command]
        command = [*self.prefix, *command]
        with self.log.open("ab") as log:
            environment = os.environ | self.environment | {_MARK: str(self.folder)}
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        return self.process

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it was started and runs no more."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def reload(self, outcome: str = "config reloaded from") -> None:
        """Write the config, send SIGHUP, and wait until the log reports the outcome once more."""
        assert self.process is not None
        before = self.log.read_text().count(outcome)
        self.write_config()
        self.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.log.read_text().count(outcome) > before, outcome)

    def kill(self) -> None:
        """Send SIGKILL and wait until the children have exited too."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        _, alive = psutil.wait_procs(children, TIMEOUT_S)
        assert not alive

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(TIMEOUT_S)

    def get(self, target: str) -> httpx.Response:
        """Send a GET request through the UNIX socket."""
        return self._local("GET", target)

    def post(self, target: str, **options: Any) -> httpx.Response:
        return self._local("POST", target, **options)

    def _local(self, method: str, target: str, **options: Any) -> httpx.Response:
        transport = UnixTransport(self.state / "edged.sock")
        with httpx.Client(transport=transport, timeout=60, trust_env=False) as client:
            return client.request(method, f"http://edged{target}", **options)

    def tcp(self) -> httpx.Client:
        return httpx.Client(base_url=self.status()["address"], timeout=60, verify=NO_CERTIFICATES, trust_env=False)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/edged/v1/status").json()
        return found

    def updates(self) -> list[dict[str, Any]]:
        """Return the updates, newest first."""
        found: list[dict[str, Any]] = self.get("/edged/v1/updates").json()["updates"]
        return found

    def drop(self, source: Path, name: str | None = None, model: str = "digits") -> None:
        """Copy a file into the drop folder and rename it into place."""
        put(source, self.state / "drop" / model / (name or source.name))

    def update_of(self, name: str, *states: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Return the newest update of a file once it is in one of `states`, by default once it has ended."""
        wanted = set(states) or ENDS

        def look() -> dict[str, Any] | None:
            newest = next((u for u in self.updates() if u["file_name"] == name), None)
            return newest if newest is not None and newest["state"] in wanted else None

        return eventually(look, f"{name} in {wanted}", timeout_s)

    def await_queued(self, name: str) -> dict[str, Any]:
        """Wait until a file is claimed and in the queue of its model: the journal has it a moment before; return it."""
        update = self.update_of(name, "CLAIMED")
        line = f"update {update['id']} of {update['model']} claimed: "  # and offered before anything else is done
        eventually(lambda: line in self.log.read_text(), line)
        return update

    def await_no_claims(self) -> None:
        """Wait until no claimed file is left: one is removed right after its update has ended."""
        eventually(lambda: not list((self.state / "claimed").iterdir()), "the claimed files are removed")

    def put_live(self, source: Path, name: str | None = None, model: str = "digits") -> dict[str, Any]:
        """Drop a good file and wait until it is committed."""
        self.drop(source, name, model)
        update = self.update_of(name or source.name)
        assert update["state"] == "COMMITTED", update
        return update

    def generation(self, model: str = "digits") -> int | None:
        """Return the live generation of a model."""
        found: int | None = next(m["generation"] for m in self.status()["models"] if m["name"] == model)
        return found

    def infer(self, *images: Path, model: str = "digits", **body: Any) -> httpx.Response:
        """Send encoded images, with `body` as further fields."""
        data = [base64.b64encode(path.read_bytes()).decode() for path in images]
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(data)], "data": data}
        return self.post(f"/v2/models/{model}/infer", json={**body, "inputs": [tensor]})

    def metric(self, line: str) -> float | None:
        """Return the value of one sample of /metrics, or None if it is missing."""
        for found in self.get("/metrics").text.splitlines():
            if found.startswith(f"{line} "):
                return float(found.rsplit(" ", 1)[1])
        return None

    def rss_bytes(self) -> int:
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)


def put(source: Path, target: Path) -> None:
    """Copy a file to a hidden name, and rename it into place."""
    hidden = target.with_name(f".{target.name}")
    shutil.copy(source, hidden)
    hidden.rename(target)


def tracebacks(log: str) -> list[str]:
    """Return the beginning of each traceback in a log."""
    return [f"Traceback{rest[:1500]}" for rest in log.split("Traceback")[1:]]


def processes(daemon: Daemon) -> list[psutil.Process]:
    """Return all processes that this daemon has started, in all its runs, and that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended, or is another user's
            if process.environ().get(_MARK) == str(daemon.folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def children(daemon: Daemon, module: str) -> list[psutil.Process]:
    """Return the child processes that run a module."""
    assert daemon.process is not None
    found = []
    for child in psutil.Process(daemon.process.pid).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if module in child.cmdline():
                found.append(child)
    return found


def time_out(daemon: Daemon, body: dict[str, Any], count: int, model: str = "digits") -> None:
    """Have requests fail by a fault of the server: their generation hangs until serve.deadline_ms has passed."""
    hanging = children(daemon, "service.inference.main")
    for process in hanging:
        process.suspend()
    try:
        with ThreadPoolExecutor(count) as pool:
            answers = list(pool.map(lambda _: daemon.post(f"/v2/models/{model}/infer", json=body), range(count)))
    finally:
        for process in hanging:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
    assert {answer.status_code for answer in answers} == {504}


def workers(daemon: Daemon) -> list[psutil.Process]:
    return children(daemon, "service.worker.main")


def edged(daemon: Daemon, *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "service.cli.main", *map(str, arguments), "--json"]
    done = subprocess.run([*command, "--config", daemon.folder / "edged.yaml"], capture_output=True, timeout=120)
    return done.returncode, json.loads(done.stdout)


@contextlib.contextmanager
def running(folder: Path, calibration: Path, **settings: Any) -> Iterator[Daemon]:
    """Run a daemon and yield it once it is ready; show its log if the test fails."""
    daemon = Daemon(folder, calibration, **settings)
    try:
        yield daemon.start()
    except BaseException:
        sys.stderr.write(daemon.log.read_text(errors="replace") if daemon.log.exists() else "no log")
        raise
    finally:
        daemon.close()

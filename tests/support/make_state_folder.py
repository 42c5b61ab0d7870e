"""Make tests/support/data/state-0.1.0.tar.xz: the state folder that the code of version 0.1.0 (4ee2849) leaves.

Run it once, with the interpreter of a checkout of that commit, whose daemon does everything:

    cd CHECKOUT-OF-4ee2849 && PYTHONPATH=. .venv/bin/python .../make_state_folder.py .../state-0.1.0.tar.xz

The daemon is killed with an update in the middle, so that the next one has to resume it. Networks have few weights that
are not zero, so that the archive is small; what they answer means nothing. The archive holds:

    state/           the state folder, without caches, sockets and locks
    expected.json    one input and what each generation answered for it

| update | file       | state       |                                                            |
|--------|------------|-------------|------------------------------------------------------------|
| 1      | first.pt   | COMMITTED   | generation 1, the live one                                 |
| 2      | broken.pt  | REJECTED    | with rejected/<sha256>/                                    |
| 3      | second.pt  | ROLLED_BACK | generation 2; a rollback leads to it                       |
| 4      | third.pt   | in the middle | its claimed file is there; the model was pinned meanwhile |
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from PIL import Image
from torch import nn

from edged.models.registry import Architecture, build

MODEL, SIDE = "tiny", 8
NETWORK = Architecture("cifar_resnet20", 10, stem="cifar", shortcut="pad")
LEFT_OUT = ("calib", "capture", "staging", "edged.sock", "lock")
TIMEOUT_S = 120.0
COMMAND = [sys.executable, "-m", "service.cli"]  # where the command was in 0.1.0


class LocalConnection(HTTPConnection):
    """HTTP over the daemon's UNIX socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("edged", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Daemon:
    """The daemon of that version with its state folder."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self._config = folder / "edged.yaml"
        self._config.write_text(yaml.safe_dump(config(self.state, folder / "images")))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([*COMMAND, "run", "--config", str(self._config)], stderr=log)
        eventually(lambda: self.ask("GET", "/edged/v1/status").get("ready"), "a daemon that is ready")

    def ask(self, method: str, target: str, body: Any = None) -> dict[str, Any]:
        """Send a request; return the JSON of the response, or {} while nobody listens."""
        connection = LocalConnection(self.state / "edged.sock")
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        except OSError:
            return {}
        finally:
            connection.close()
        return answer

    def drop(self, file: Path) -> None:
        """Rename a file into the drop folder."""
        file.rename(self.state / "drop" / MODEL / file.name)

    def wait_for(self, name: str, *states: str) -> None:
        """Wait until the update of a file is in one of `states`."""

        def reached() -> bool:
            updates = self.ask("GET", "/edged/v1/updates").get("updates", [])
            return any(update["file_name"] == name and update["state"] in states for update in updates)

        eventually(reached, f"{name} in {states}")

    def outputs(self, values: list[float]) -> list[float]:
        """Return what the live generation answers."""
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, SIDE, SIDE], "data": values}
        answer = self.ask("POST", f"/v2/models/{MODEL}/infer", {"inputs": [tensor]})
        found: list[float] = answer["outputs"][0]["data"]
        return found

    def suspend_worker(self) -> None:
        """Stop the worker as soon as there is one."""

        def worker() -> psutil.Process | None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return next((child for child in children if "service.worker" in child.cmdline()), None)

        eventually(worker, "a worker").suspend()

    def kill(self) -> None:
        """End it and its children at once."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        for process in (self.process, *children):
            process.kill()
        self.process.wait()
        psutil.wait_procs(children)


def config(state: Path, images: Path) -> dict[str, Any]:
    """Return the config; the test has the same model."""
    model = {
        "name": MODEL,
        "calibration": {"dir": str(images), "images": 32},
        "input": {"size": SIDE, "resize": SIDE},
        "quantization": {"recipe": "fast", "method": "rtn", "bits": 2},
        "gates": {"min_agreement": 0},
        "probation_s": 0,
        "report_images": 1,
    }
    watch = {"settle_s": 0.1, "rescan_s": 1}
    return {"state_dir": str(state), "models": [model], "watch": watch, "serve": {"port": 0}}


def checkpoint(path: Path, seed: int) -> Path:
    """Save a network with three weights of each row that are not zero."""
    torch.manual_seed(seed)
    model = build(NETWORK)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            rows = torch.zeros(len(module.weight), module.weight[0].numel())
            columns = torch.rand_like(rows).topk(3, dim=1).indices
            rows.scatter_(1, columns, torch.randint(0, 2, columns.shape).float() - 0.5)
            module.weight = nn.Parameter(rows.reshape(module.weight.shape), requires_grad=False)
            if module.bias is not None:
                module.bias = nn.Parameter(torch.zeros_like(module.bias), requires_grad=False)
    torch.save(model.state_dict(), path)
    return path


def eventually(look: Callable[[], Any], what: str) -> Any:
    """Return the first result of `look` that is true."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        if result := look():
            return result
        time.sleep(0.01)
    raise TimeoutError(f"{what} did not come within {TIMEOUT_S:g} s")


def write_images(folder: Path) -> None:
    """Write calibration images of noise."""
    folder.mkdir()
    for index in range(32):
        pixels = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")


def run(folder: Path, archive: Path) -> None:
    """Let a daemon go through the updates of the table, kill it, and pack what it leaves."""
    write_images(folder / "images")
    values = np.random.default_rng(0).normal(size=3 * SIDE * SIDE).round(3).tolist()
    daemon = Daemon(folder)
    try:
        daemon.drop(checkpoint(folder / "first.pt", 1))
        daemon.wait_for("first.pt", "COMMITTED")
        expected = {"1": daemon.outputs(values)}
        (folder / "broken.pt").write_bytes(b"not a checkpoint")
        daemon.drop(folder / "broken.pt")
        daemon.wait_for("broken.pt", "REJECTED")
        daemon.drop(checkpoint(folder / "second.pt", 2))
        daemon.wait_for("second.pt", "COMMITTED")
        expected["2"] = daemon.outputs(values)
        daemon.ask("POST", f"/edged/v1/models/{MODEL}/rollback")
        daemon.wait_for("second.pt", "ROLLED_BACK")
        daemon.drop(checkpoint(folder / "third.pt", 3))
        daemon.suspend_worker()
        daemon.ask("POST", f"/edged/v1/models/{MODEL}/pin")
        daemon.wait_for("third.pt", "CLAIMED", "VERIFIED", "LOADED", "CALIBRATED", "QUANTIZED", "EVALUATED")
    finally:
        daemon.kill()
    (folder / "expected.json").write_text(json.dumps({"input": values, "outputs": expected}))
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for path in sorted(daemon.state.iterdir()):
            if path.name not in LEFT_OUT:
                packed.add(path, f"state/{path.name}")
        packed.add(folder / "expected.json", "expected.json")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        run(Path(scratch), Path(sys.argv[1]))

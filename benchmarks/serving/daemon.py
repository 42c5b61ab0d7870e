"""The daemon that benchmarks.serving measures: two generations of a small network, swapped as by an operator."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from torch import nn

from benchmarks.demo import digits
from benchmarks.serving.checks import Swap
from benchmarks.serving.load import Call
from benchmarks.serving.payloads import tensor_call
from benchmarks.serving.processes import end_group, eventually
from edged.errors import UnavailableError
from edged.models.registry import Architecture, build
from service.client import DaemonClient

MODEL, SIDE = "net", 32
NETWORK = Architecture("cifar_resnet20", 10, stem="cifar", shortcut="pad")
ALTERED = Path(__file__).parent / "altered"
PREPARES = {"nice": 0}  # the worker where it only prepares a measurement: other work must not hold that up


class Edged:
    """A daemon with its folder.

    Args:
        folder: Folder for state, config and log.
        side: Side of the network's input, pixels.
        altered: Change that benchmarks/serving/altered makes; "" for none.
        others: Further models of the config.
        settings: Sections of the config that replace the defaults here.
    """

    name = "edged"

    def __init__(
        self, folder: Path, side: int = SIDE, altered: str = "", others: Sequence[dict[str, Any]] = (), **settings: Any
    ) -> None:
        self._folder = folder
        self._altered = altered
        self._seeds = 0
        self._process: subprocess.Popen[bytes] | None = None
        images = folder / "digits"
        if not images.exists():
            digits.write_folders(digits.load(), digits.TEST, images)
        quick = {"recipe": "fast", "method": "rtn"}  # the swap is measured, not the quantization
        model = {"name": MODEL, "calibration": {"dir": str(images), "images": 32}, "quantization": quick}
        # The weights are random, so no gate looks at them.
        model |= {"input": {"size": side, "resize": side}, "gates": {"min_agreement": 0}, "probation_s": 0}
        self._config: dict[str, Any] = {
            "state_dir": str(folder / "state"),
            "models": [model, *others],
            "watch": {"settle_s": 0.1, "rescan_s": 1},
            "serve": {"port": 0},
            **settings,
        }
        self.call = image_call(MODEL, side)

    def __enter__(self) -> Edged:
        environment = dict(os.environ)
        if self._altered:
            paths = [str(ALTERED), *filter(None, [environment.get("PYTHONPATH")])]
            environment |= {"EDGED_ALTERED": self._altered, "PYTHONPATH": os.pathsep.join(paths)}
        config = self._folder / "edged.yaml"
        config.write_text(yaml.safe_dump(self._config))
        command = [sys.executable, "-m", "service.cli.main", "run", "--config", str(config)]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            eventually(self._ready, "a daemon that is ready")
        except BaseException:
            end_group(self._process)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._running())

    @property
    def pid(self) -> int:
        """Return the process id of the supervisor."""
        return self._running().pid

    @property
    def address(self) -> str:
        """Return the URL of the daemon."""
        found: str = self.get("/edged/v1/status")["address"]
        return found

    @property
    def generation(self) -> str:
        """Return the live generation."""
        return str(self.get("/edged/v1/status")["models"][0]["generation"])

    def get(self, target: str) -> dict[str, Any]:
        """Return the response of the daemon to a GET request."""
        return self._client().get(target)

    def generation_pid(self) -> int:
        """Return the id of the process that serves."""
        return next(
            child.pid
            for child in psutil.Process(self.pid).children(recursive=True)
            if "service.inference.main" in child.cmdline()
        )

    def put_live(self) -> Swap:
        """Drop a checkpoint with new weights and wait until it is committed."""
        self._seeds += 1
        name = f"{self._seeds}.pt"
        start = time.monotonic()
        self.drop(checkpoint(NETWORK, self._seeds, self._folder / name), MODEL)
        update = self.update_of(name, "COMMITTED")
        return Swap(start, time.monotonic(), str(update["generation"]))

    def drop(self, file: Path, model: str) -> None:
        """Move a file into the drop folder."""
        file.rename(self._folder / "state" / "drop" / model / file.name)

    def update_of(self, name: str, *states: str) -> dict[str, Any]:
        """Return the update of a file once it is in one of `states`.

        Raises:
            TimeoutError: It does not reach any of them in time.
        """

        def look() -> dict[str, Any] | None:
            updates: list[dict[str, Any]] = self.get("/edged/v1/updates?limit=4")["updates"]
            return next((u for u in updates if u["file_name"] == name and u["state"] in states), None)

        return eventually(look, f"{name} in {' or '.join(states)}")

    def stays(self, name: str, state: str, seconds: float) -> None:
        """Wait until the update of a file leaves its state, for at most `seconds`."""
        with contextlib.suppress(TimeoutError):
            eventually(lambda: self.get("/edged/v1/updates?limit=1")["updates"][0]["state"] != state, name, seconds)

    def reload(self) -> Swap:
        """Roll back to the previous generation; the next call goes back again."""
        start = time.monotonic()
        answer = self._client().post(f"/edged/v1/models/{MODEL}/rollback")
        return Swap(start, time.monotonic(), str(answer["to"]))

    def artifact(self) -> Path:
        """Return the folder of the live generation."""
        return (self._folder / "state" / "models" / MODEL / "current").resolve()

    def _client(self) -> DaemonClient:
        return DaemonClient(str(self._folder / "state" / "edged.sock"))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the daemon was not started")
        return self._process

    def _ready(self) -> bool:
        if self._running().poll() is not None:
            raise TimeoutError(f"the daemon exited: {(self._folder / 'log').read_text()[-2000:]}")
        with contextlib.suppress(UnavailableError):
            return bool(self.get("/edged/v1/status")["ready"])
        return False


@contextlib.contextmanager
def swappable(**options: Any) -> Iterator[Edged]:
    """Run a daemon with two generations; remove its folder at the end, but keep it after an error."""
    folder = Path(tempfile.mkdtemp(prefix="edged-serving-"))
    try:
        with Edged(folder, **options) as edged:
            edged.put_live()
            edged.put_live()
            yield edged
    except BaseException:
        sys.stderr.write(f"the daemon's folder is {folder}\n")
        raise
    shutil.rmtree(folder)


def checkpoint(network: Architecture, seed: int, path: Path) -> Path:
    """Save a state dict of random weights and return its path."""
    torch.manual_seed(seed)
    model = build(network)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    torch.save(model.state_dict(), path)
    return path


def image(side: int) -> np.ndarray:
    """Return an image float32 [1, 3, side, side] of noise, always the same."""
    return np.random.default_rng(0).normal(size=(1, 3, side, side)).astype(np.float32)


def image_call(model: str, side: int) -> Call:
    """Return a request with one image as binary FP32 that asks for a binary response."""
    return tensor_call(model, "input", "FP32", image(side))

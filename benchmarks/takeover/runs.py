"""Run daemons whose workers were taken over, with the real launcher, and collect what these could do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import yaml

from benchmarks.serving.processes import eventually
from benchmarks.takeover.attempts import RESULTS, TOLD
from edged.errors import UnavailableError
from service.client import DaemonClient

NOBODY = 65534
MODEL, OTHER = "victim", "bystander"
HERE = Path(__file__).parent
_ROOT = HERE.parents[1]
_SYSTEM_PYTHON = "/usr/bin/python3"
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Taken:
    """What workers could do that were taken over.

    Attributes:
        results: "" for each attempt that worked, or why it did not.
        update: The update of the hostile file as its history shows it.
        alive: Whether the daemon answers and the other model serves afterwards, with the same processes.
    """

    results: Mapping[str, str]
    update: Mapping[str, Any]
    alive: bool


def python_of(uid: int) -> list[str] | None:
    """Return how a user runs Python with the packages of this one; None if the user cannot."""
    if uid == os.getuid():
        return [sys.executable]
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return None
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    for python in (sys.executable, _SYSTEM_PYTHON):
        # A child of Python, because setpriv has its capabilities until it has become Python.
        program = "import subprocess, sys, service.app; print(sys.version_info[:2], flush=True);"
        program += "subprocess.run([sys.executable, '-c', 'import service.inference.main'], check=True)"
        probe = [*become, python, "-c", program]
        done = subprocess.run(probe, env=_environment(taken_over=False), capture_output=True, text=True, cwd="/")
        if done.returncode == 0 and done.stdout.strip() == str(sys.version_info[:2]):
            return [*become, python]
    return None


class Prepared:
    """A state folder in which two models are in service.

    Args:
        folder: An empty folder.
        checkpoint: A checkpoint for both.
        images: Its calibration images, in folders by class.
        model: Further settings of both models.
    """

    def __init__(self, folder: Path, checkpoint: Path, images: Path, model: Mapping[str, Any]) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._images = images
        self._model = dict(model)
        self.state = folder / "state"
        with self._daemon(folder, [sys.executable], "auto", taken_over=False) as daemon:
            for name in (MODEL, OTHER):
                drop(self.state, name, checkpoint)
            eventually(lambda: _served(daemon, self.state), "both models are served", _PATIENCE_S)

    def take_over(self, folder: Path, uid: int, sandbox: str) -> Taken:
        """Run a daemon on a copy of the state folder, and have the worker of a new checkpoint taken over.

        Args:
            folder: An empty folder.
            uid: User ID of the daemon.
            sandbox: worker.sandbox of its config.
        """
        python = python_of(uid)
        if python is None:
            raise RuntimeError(f"user {uid} cannot run Python with these packages")
        shutil.copytree(self.state, folder / "state", symlinks=True, ignore=shutil.ignore_patterns("*.sock", "calib"))
        state = folder / "state"
        (state / "calib" / OTHER).mkdir(parents=True)
        with self._daemon(folder, python, sandbox, taken_over=True, uid=uid) as daemon:
            before = eventually(lambda: _served(daemon, state), "both models are served", _PATIENCE_S)
            self._tell(folder, state, min(before))
            file = folder / "hostile.pt"  # other bytes, or the generation would be known
            file.write_bytes(self._checkpoint.read_bytes())
            _stamp(file)
            drop(state, MODEL, file, uid)
            results = state / "calib" / MODEL / RESULTS
            update = eventually(lambda: _ended(state, "hostile.pt"), "the hostile file is done with", _PATIENCE_S)
            if not results.exists():
                raise RuntimeError(f"the worker reported nothing: {update['reason']}")
            alive = daemon.poll() is None and _served(daemon, state) == before
            return Taken(json.loads(results.read_text()), update, alive)

    def _tell(self, folder: Path, state: Path, generation: int) -> None:
        """Tell the worker where everything is."""
        port = urlsplit(_get(state, "/edged/v1/status")["address"]).port
        told = {"state": state, "config": folder / "edged.yaml", "token": folder / "token", "port": port}
        told |= {"other": OTHER, "generation": generation, "other_images": folder / OTHER}
        (folder / MODEL / TOLD).write_text(json.dumps(told, default=str))

    @contextlib.contextmanager
    def _daemon(
        self, folder: Path, python: list[str], sandbox: str, *, taken_over: bool, uid: int = 0
    ) -> Iterator[subprocess.Popen[bytes]]:
        (folder / "token").write_text("a secret\n")
        for name in (MODEL, OTHER):
            shutil.copytree(self._images, folder / name)
        models = [{"name": name, "calibration": {"dir": str(folder / name)}, **self._model} for name in (MODEL, OTHER)]
        config = {
            "state_dir": str(folder / "state"),
            "models": models,
            "watch": {"settle_s": 0.1, "rescan_s": 1},
            "serve": {"port": 0, "threads": 1, "token_file": str(folder / "token")},
            "worker": {"threads": 1, "nice": 0, "tries": 1, "sandbox": sandbox},
        }
        (folder / "edged.yaml").write_text(yaml.safe_dump(config))
        if uid != os.getuid():
            for path in (folder, *folder.rglob("*")):
                os.chown(path, uid, uid, follow_symlinks=False)
        command = [*python, "-m", "service.cli.main", "run", "--config", str(folder / "edged.yaml")]
        environment = _environment(taken_over=taken_over) | {"HOME": str(folder)}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd="/")
        try:
            yield process
        except Exception as error:
            raise RuntimeError(f"{error}\n{(folder / 'log').read_text(errors='replace')[-4000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_S)
            process.kill()
            process.wait()


def drop(state: Path, model: str, file: Path, uid: int = 0) -> None:
    """Rename a copy of a file into the drop folder of a model."""
    folder = state / "drop" / model
    eventually(folder.is_dir, "the drop folder is made", _PATIENCE_S)
    shutil.copy(file, folder / f".{file.name}")
    os.chown(folder / f".{file.name}", uid, uid)
    (folder / f".{file.name}").rename(folder / file.name)


def _served(daemon: subprocess.Popen[bytes], state: Path) -> set[int]:
    """Return the process IDs of the generations once both models are in service; an empty set before."""
    try:
        models = _get(state, "/edged/v1/status")["models"]
    except UnavailableError:
        return set()
    found = set()
    for child in psutil.Process(daemon.pid).children():
        with contextlib.suppress(psutil.Error):
            if "service.inference.main" in child.cmdline():
                found.add(child.pid)
    ready = all(model["generation"] is not None for model in models)
    return found if ready and len(found) == len(models) else set()


def _ended(state: Path, name: str) -> dict[str, Any] | None:
    """Return the update of a file once it has ended."""
    updates = _get(state, "/edged/v1/updates")["updates"]
    ends = ("COMMITTED", "REJECTED", "FAILED", "DEFERRED")
    return next((each for each in updates if each["file_name"] == name and each["state"] in ends), None)


def _get(state: Path, target: str) -> dict[str, Any]:
    return DaemonClient(str(state / "edged.sock")).get(target)


def _environment(*, taken_over: bool) -> dict[str, str]:
    """Return the environment of a daemon of this checkout with the packages of this Python."""
    packages = [path for path in sys.path if path.endswith("-packages")]
    paths = [*([str(HERE)] if taken_over else []), str(_ROOT), *packages]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _stamp(file: Path) -> None:
    """Give a checkpoint another digest than it had: a zip may have a comment at its end."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"taken over"

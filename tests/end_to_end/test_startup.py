"""What keeps the daemon from starting: one line and the documented exit code."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import TIMEOUT_S, Daemon, children, eventually, running
from tests.support.tasks import Task


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Nothing is dropped here, so the folder may be empty."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def fails(daemon: Daemon, code: int) -> str:
    assert daemon.spawn().wait(TIMEOUT_S) == code, daemon.log.read_text()
    told = [line for line in daemon.log.read_text().splitlines() if line.startswith("edged: ")]
    assert "Traceback" not in daemon.log.read_text()
    assert told
    return "\n".join(told)


def test_an_occupied_port(tmp_path: Path, images: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = fails(Daemon(tmp_path, images, serve={"port": port}), 69)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in told
    assert "serve.port" in told


def test_a_second_daemon_on_the_same_state(tmp_path: Path, images: Path) -> None:
    with running(tmp_path, images) as first:
        told = fails(Daemon(tmp_path, images), 69)
        assert f"another edged daemon uses state_dir {first.state}" in told
        assert first.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize("state", ["/proc/edged", "FILE/state"])
def test_an_unwritable_state_folder(tmp_path: Path, images: Path, state: str) -> None:
    (tmp_path / "file").write_text("in the way")
    state = state.replace("FILE", str(tmp_path / "file"))
    told = fails(Daemon(tmp_path, images, state_dir=state), 73)
    assert f"cannot write state_dir {state}" in told


def test_a_config_with_several_mistakes(tmp_path: Path, images: Path) -> None:
    wrong: dict[str, Any] = {"serve": {"port": "many"}, "wach": {}, "worker": {"tries": 0}}
    daemon = Daemon(tmp_path, images, **wrong)
    assert daemon.spawn().wait(TIMEOUT_S) == 78
    told = daemon.log.read_text()
    for expected in ("serve.port", "'wach'|wach", "worker.tries"):
        assert any(part in told for part in expected.split("|"))
    assert "did you mean 'watch'" in told
    assert told.count("edged.yaml:") == 3  # each with its line


def test_no_config(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, tmp_path / "nowhere")
    assert "calibration.dir" in fails(daemon, 78)


def test_ready_without_any_model_published(tmp_path: Path, images: Path) -> None:
    with running(tmp_path, images) as daemon:
        assert daemon.get("/v2/health/ready").json() == {"ready": True}
        answer = daemon.get("/v2/models/digits")
        assert (answer.status_code, "no generation in service yet" in answer.json()["error"]) == (503, True)
        assert daemon.get("/v2/models/digits/ready").status_code == 503
        assert daemon.rss_bytes() < 60 * 2**20
        assert daemon.stop() == 0


@pytest.mark.parametrize("module", ["service.inference.fork_server", "service.inference.main"])
def test_a_stop_does_not_wait_for_a_model_that_loads(task: Task, tmp_path: Path, module: str) -> None:
    """It would have three minutes for it."""
    with running(tmp_path, task.calibration) as daemon:
        generation = daemon.put_live(task.first)["generation"]
        assert daemon.stop() == 0
        weights = daemon.state / f"models/digits/gen/{generation}/weights.safetensors"
        kept = weights.rename(tmp_path / "kept")
        os.mkfifo(weights)  # nobody writes to it
        daemon.spawn()
        eventually(lambda: children(daemon, module), f"{module} runs")[0].suspend()
        assert daemon.stop() == 0
        kept.rename(weights)
        daemon.start()
        assert daemon.generation() == generation

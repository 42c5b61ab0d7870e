"""A core for requests while a model is quantized, in the real daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import eventually, running, workers
from tests.support.tasks import Task

CORES = len(os.sched_getaffinity(0))


@pytest.mark.skipif(CORES < 2, reason="on one core there is none to leave to requests")
def test_requests_take_a_core_from_the_worker(task: Task, tmp_path: Path) -> None:
    image = next(task.test.rglob("*.png"))
    with running(tmp_path, task.calibration, worker={"threads": "auto"}) as daemon:
        daemon.put_live(task.first, "first.pt")
        held = 'edged_worker_held_back_seconds_total{model="digits"}'
        assert daemon.metric(held) == 0.0
        daemon.drop(task.second, "second.pt")
        (worker,) = eventually(lambda: workers(daemon), "a worker")
        worker.suspend()  # so that it does not end meanwhile
        assert len(os.sched_getaffinity(worker.pid)) == CORES

        def held_back() -> bool:
            assert daemon.infer(image).status_code == 200
            return len(os.sched_getaffinity(worker.pid)) == CORES - 1  # for three seconds after a request

        eventually(held_back, "the worker leaves a core to requests")
        worker.resume()
        update = daemon.update_of("second.pt")
        assert update["state"] == "COMMITTED"
        counted = daemon.metric(held)
        assert counted is not None
        assert counted > 0
        report = daemon.get(f"/edged/v1/updates/{update['id']}/report.json").json()
        assert report["course"]["held_back_s"] == pytest.approx(counted)
        command = [sys.executable, "-m", "service.cli.main", "report", str(update["id"])]
        config = str(daemon.folder / "edged.yaml")
        done = subprocess.run([*command, "--config", config], capture_output=True, text=True, check=True)
        assert "Worker held back for requests" in done.stdout

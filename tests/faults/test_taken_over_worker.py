"""A worker that a checkpoint has taken over tries what could do harm, and can do none of it.

The launcher is the real one. The same attempts are made without the sandbox, too, and work: so the tests could fail.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.takeover.attempts import ATTEMPTS, NEEDED, RESULTS, TOLD
from benchmarks.takeover.runs import HERE, NOBODY, Prepared, Taken, python_of
from service.outcomes import Failure
from service.worker.job import Job
from service.worker.process import WorkerLimits, WorkerProcess
from service.worker.sandbox import AUTO, OFF, lacking, parts_of
from tests.support.tasks import Task

LACKING = lacking(parts_of(AUTO))
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"no sandbox here: {LACKING}")
FEW = 35  # attempts that work without the sandbox, for any user


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[Job]:
    """What a daemon has around its worker; the tests are the supervisor."""
    state = tmp_path / "state"
    for model in ("victim", "bystander"):
        for folder in (f"models/{model}/gen/1", f"drop/{model}", f"calib/{model}", f"images/{model}/0"):
            (state / folder).mkdir(parents=True)
        (state / "models" / model / "gen/1/weights.safetensors").write_bytes(b"weights")
        (state / "models" / model / "current").symlink_to("gen/1")
        (state / "images" / model / "0/0.png").write_bytes(b"image")
    with sqlite3.connect(state / "journal.db") as journal:
        journal.execute("CREATE TABLE updates (id)")
    journal.close()
    for name in ("claimed/0/file", "staging/1/none", "token", "edged.yaml"):
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_bytes(b"secret")
    serving = subprocess.Popen(["sleep", "600"])
    with socket.socket(socket.AF_UNIX) as admin, socket.create_server(("127.0.0.1", 0)) as server:
        admin.bind(str(state / "edged.sock"))
        admin.listen()
        told = {"state": state, "config": state / "edged.yaml", "token": state / "token", "other": "bystander"}
        told |= {"port": server.getsockname()[1], "generation": serving.pid, "other_images": state / "images/bystander"}
        (state / "images/victim" / TOLD).write_text(json.dumps(told, default=str))
        yield Job(
            state / "claimed/0/file",
            state / "staging/1/artifact",
            state / "images/victim",
            state / "calib/victim",
            name="victim",
            runtime="onnxruntime",
            private=(state,),
        )
    serving.kill()
    serving.wait()


def taken_over(job: Job, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, str]:
    """Run a worker that a checkpoint has taken over, and return what it reports of each attempt."""
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    job = Job(**{**vars(job), **options})

    async def ignore(_: dict[str, Any]) -> None:
        """Take an event of the worker."""

    worker = WorkerProcess(job, WorkerLimits(deadline_s=120, nice=0), ignore)
    outcome = asyncio.run(worker.run())
    assert isinstance(outcome, Failure)
    assert outcome.code == "architecture", outcome.reason
    found: dict[str, str] = json.loads((job.cache_root / RESULTS).read_text())
    assert found.keys() == {*ATTEMPTS, *NEEDED}
    return found


def worked(found: dict[str, str]) -> set[str]:
    return {name for name, reason in found.items() if not reason}


def test_it_can_do_what_it_needs_and_nothing_else(surroundings: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worked(taken_over(surroundings, monkeypatch)) == set(NEEDED)


def test_without_the_sandbox_it_can_do_nearly_all(surroundings: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control; what root alone may do is left to whom the tests run as."""
    found = worked(taken_over(surroundings, monkeypatch, sandbox=OFF))
    assert found >= set(NEEDED)
    assert len(found - set(NEEDED)) > FEW


@pytest.fixture(scope="module")
def prepared(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("taken-over")
    model = {"input": {"size": 8, "resize": 8}, "quantization": {"activation_bits": None}, "probation_s": 0}
    return Prepared(folder, task.first, task.calibration, model | {"runtime": "onnxruntime"})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "user"])
def test_a_daemon_goes_on(prepared: Prepared, uid: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In a real daemon, whose other model serves on."""
    if python_of(uid) is None:
        pytest.skip(f"user {uid} cannot run Python with these packages")

    def run(sandbox: str) -> Taken:
        folder = tmp_path_factory.mktemp(f"daemon-{uid}-{sandbox}")
        for path in (folder, *folder.parents):
            if not path.stat().st_mode & 0o001:  # pytest's folders are those of one user
                path.chmod(0o755)
        return prepared.take_over(folder, uid, sandbox)

    confined, free = run("require"), run("off")
    assert worked(dict(confined.results)) == set(NEEDED)
    assert len(worked(dict(free.results))) > FEW
    for taken in (confined, free):
        assert taken.alive
        assert taken.update["state"] == "REJECTED"

"""What a swap leaves behind in the journal, what a crash costs, and how a daemon with little memory swaps."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import psutil
import pytest
import torch

from edged.models.registry import Architecture, build
from service.inference.inputs import MAX_BATCH
from tests.support.daemon import NO_CERTIFICATES, Daemon, children, eventually, running, workers
from tests.support.pictures import vast_picture
from tests.support.processes import ENTER, busy
from tests.support.tasks import Task

MIB = 1 << 20


def generation_process(daemon: Daemon) -> psutil.Process:
    (child,) = children(daemon, "service.inference.main")
    return child


def test_the_policy_of_each_swap_is_journaled(task: Task, tmp_path: Path) -> None:
    with running(tmp_path, task.calibration) as daemon:
        first = daemon.put_live(task.first)["report"]["swap"]
        assert (first["policy"], first["asked"], first["free_bytes"]) == ("availability", "auto", None)
        assert first["warmup"]["identical"]  # worker and generation compute with as many threads
        second = daemon.put_live(task.second)
        swap = second["report"]["swap"]
        assert (swap["policy"], swap["asked"]) == ("availability", "auto")
        assert 50 * MIB < swap["needed_bytes"] < swap["free_bytes"]
        assert daemon.post("/edged/v1/models/digits/rollback").status_code == 200

        command = [sys.executable, "-m", "service.cli.main", "history", "digits", "--json"]
        done = subprocess.run(
            [*command, "--config", str(daemon.folder / "edged.yaml")], capture_output=True, text=True, check=True
        )
        newest = json.loads(done.stdout)["updates"][0]
        assert newest["report"]["swap"] == swap
        assert newest["report"]["rollback"]["policy"] == "availability"
        assert newest["report"]["agreement"] == second["report"]["agreement"]
        told = daemon.get(f"/edged/v1/updates/{newest['id']}").json()
        assert (told["state"], told["report"]) == ("ROLLED_BACK", newest["report"])
        assert daemon.metric('edged_swaps_total{model="digits",policy="availability"}') == 3


def test_both_children_wait_quietly_and_with_as_many_threads_as_configured(task: Task, tmp_path: Path) -> None:
    def seen(process: psutil.Process) -> dict[str, str]:
        environment = process.environ()
        return {key: environment.get(key, "") for key in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}

    expected = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}

    with running(tmp_path, task.calibration, worker={"threads": 2}) as daemon:
        daemon.drop(task.first)
        assert eventually(lambda: [seen(worker) for worker in workers(daemon)], "a worker") == [expected]
        assert daemon.update_of("first.pt")["state"] == "COMMITTED"
        generation = generation_process(daemon)
        assert seen(generation)["OMP_WAIT_POLICY"] == "PASSIVE"
        assert daemon.infer(next(task.test.rglob("*.png"))).status_code == 200
        # It has computed with one thread; another, which ONNX Runtime starts, sleeps.
        assert generation.num_threads() <= 2


def suspend(process: psutil.Process) -> None:
    """Stop a process, and wait until the last of its threads has stopped, which may take a while on a busy machine."""

    def is_stopped() -> bool:
        stats = Path(f"/proc/{process.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in stats)

    process.suspend()
    eventually(is_stopped, "all threads are stopped")


def test_requests_with_the_process_get_one_503_and_all_others_wait(task: Task, tmp_path: Path) -> None:
    asked = 6
    answers: list[httpx.Response] = []
    vast = tmp_path / "vast.png"
    vast.write_bytes(vast_picture())
    with running(tmp_path, task.calibration) as daemon:
        update = daemon.put_live(task.first)
        picture = next(task.test.rglob("*.png"))
        process = generation_process(daemon)
        askers = [threading.Thread(target=lambda: answers.append(daemon.infer(*[vast] * MAX_BATCH)))]
        askers += [threading.Thread(target=lambda: answers.append(daemon.infer(picture))) for _ in range(asked - 1)]
        begun = busy(process.pid)
        askers[0].start()
        eventually(begun, "the process is at work")
        suspend(process)  # so that it cannot answer before it is killed, nor read the next request
        for asker in askers[1:]:
            asker.start()
        in_flight = 'edged_inference_requests_in_flight{model="digits"}'
        eventually(lambda: daemon.metric(in_flight) == asked, "the requests")
        process.kill()
        for asker in askers:
            asker.join()
        after = daemon.infer(picture)
        assert (after.status_code, after.json()["model_version"]) == (200, "1")
        failed = [answer for answer in answers if answer.status_code != 200]
        assert [(answer.status_code, answer.headers["Retry-After"]) for answer in failed] == [(503, "1")]
        assert all("has lost its process" in answer.json()["error"] for answer in failed)
        requests = 'edged_inference_requests_total{{code="{}",model="digits"}}'
        assert (daemon.metric(requests.format(503)), daemon.metric(requests.format(200))) == (1, asked - 1 + 1)
        assert daemon.metric('edged_generation_restarts_total{model="digits"}') == 1
        killed = "killed by signal 9 (Killed); "  # and what the kernel's counters say of the cause
        assert f"generation 1 exited unexpectedly: {killed}" in daemon.log.read_text()

        def crash() -> dict[str, Any]:
            last: dict[str, Any] = daemon.get(f"/edged/v1/updates/{update['id']}").json()["events"][-1]
            return last

        event = eventually(lambda: crash() if "crash" in crash()["detail"] else None, "the crash in the journal")
        assert event["state"] == "COMMITTED"
        assert event["detail"] == {"crash": ANY, "crashes": 1}
        assert event["detail"]["crash"].startswith(killed)


class Steady(threading.Thread):
    """Asks at a steady rate, however long answers take."""

    def __init__(self, address: str, picture: Path, per_second: float) -> None:
        super().__init__()
        data = base64.b64encode(picture.read_bytes()).decode()
        self._body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [data]}]}
        self._url = f"{address}/v2/models/digits/infer"
        self._every_s = 1 / per_second
        self._over = threading.Event()
        self._askers: list[threading.Thread] = []
        self.answers: list[tuple[float, float, int]] = []  # when asked, when answered, status

    def run(self) -> None:
        while not self._over.wait(self._every_s):
            asker = threading.Thread(target=self._ask)
            asker.start()
            self._askers.append(asker)

    def _ask(self) -> None:
        asked = time.monotonic()
        status = httpx.post(self._url, json=self._body, timeout=60, verify=NO_CERTIFICATES).status_code
        self.answers.append((asked, time.monotonic(), status))

    def end(self) -> list[tuple[float, float, int]]:
        self._over.set()
        self.join()
        for asker in self._askers:
            asker.join()
        return sorted(self.answers)


@pytest.mark.slow
def test_recovery_from_kill_9_under_load(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path, task.calibration) as daemon:
        daemon.put_live(task.first)
        client = Steady(daemon.status()["address"], next(task.test.rglob("*.png")), per_second=10)
        client.start()
        eventually(lambda: len(client.answers) > 20, "traffic")
        process = generation_process(daemon)
        process.kill()
        killed = time.monotonic()
        eventually(lambda: sum(done > killed and status == 200 for _, done, status in client.answers) > 20, "recovery")
        answers = client.end()
        load_s = daemon.metric('edged_generation_start_seconds{model="digits"}') or 0.0
        recovered_s = min(done for asked, done, status in answers if asked > killed and status == 200) - killed
        failed = [asked - killed for asked, _, status in answers if status != 200]
        with capsys.disabled():
            print(
                f"\nkill -9 at 10 requests/s: answered again after {recovered_s:.2f} s, {load_s:.2f} s of them to load"
                f" the model; {len(failed)} of {len(answers)} requests failed"
            )
        assert {status for _, _, status in answers} <= {200, 503}
        assert len(failed) <= 1  # what the process had taken up
        assert all(asked < 0 for asked in failed)


@pytest.fixture
def group() -> Iterator[Path]:
    """A memory control group (version 1) without a limit yet, inside that of the tests."""
    own = next((line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().split() if ":memory:" in line), "")
    folder = Path("/sys/fs/cgroup/memory") / own.strip("/") / f"edged-swaps-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made here: {error}")
    yield folder
    eventually(lambda: not (folder / "cgroup.procs").read_text(), "the end of the daemon")
    folder.rmdir()


class Confined(Daemon):
    """A daemon in a control group."""

    group: Path

    def spawn(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service.cli.main", "run", "--config", str(self.write_config())]
        with self.log.open("ab") as log:
            inside = [sys.executable, "-c", ENTER, str(self.group / "cgroup.procs"), *command]
            self.process = subprocess.Popen(inside, stderr=log, stdout=log)
        return self.process

    def leave(self, extra: int) -> None:
        """Let the group have so much more memory than it uses now, files in the page cache not counted."""
        (self.group / "memory.force_empty").write_text("0")
        usage = int((self.group / "memory.usage_in_bytes").read_text())
        (self.group / "memory.limit_in_bytes").write_text(str(usage + extra))

    def killed_for_memory(self) -> int:
        """Processes of the group that the kernel ended."""
        lines = (self.group / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])


@pytest.fixture
def confined(task: Task, group: Path, tmp_path: Path) -> Iterator[Confined]:
    """A daemon in `group`, ready; its log is shown when something goes wrong."""
    daemon = Confined(tmp_path, task.calibration)
    daemon.group = group
    daemon.config["models"][0] |= {
        "gates": {"min_agreement": 0.0, "above_chance": False},
        "quantization": {"bits": 8, "method": "rtn", "propagation": 0.0, "statistics": "none", "activation_bits": None},
    }
    try:
        yield daemon.start()
    finally:
        daemon.close()
        print(daemon.log.read_text(errors="replace"))


def save_large(path: Path) -> Path:
    """A checkpoint of 94 MB; what it computes is of no use."""
    torch.manual_seed(0)
    model = build(Architecture("resnet50", 10, stem="cifar"))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.slow
def test_with_memory_for_one_generation_the_old_one_makes_room(
    task: Task, confined: Confined, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = confined
    daemon.put_live(save_large(tmp_path / "large.pt"))
    daemon.put_live(task.first)
    assert [update["report"]["swap"]["policy"] for update in daemon.updates()] == ["availability"] * 2

    # Back to the large one, with too little memory for it even after the small one has left.
    daemon.leave(60 * MIB)
    answer = daemon.post("/edged/v1/models/digits/rollback")
    assert "ended while it was starting: killed by signal 9 (Killed); the kernel killed" in answer.text
    assert daemon.killed_for_memory() == 1
    with capsys.disabled():
        print(f"\n60 MiB left: rollback answered {answer.status_code} {answer.text}")
    assert "swap by resource" in daemon.log.read_text()
    eventually(lambda: daemon.generation() == 2, "the one that was in service")
    back = daemon.infer(next(task.test.rglob("*.png")))
    assert (back.status_code, back.json()["model_version"]) == (200, "2")

    # Room for the large one, but not for half as much again as it takes.
    daemon.leave(400 * MIB)
    assert daemon.post("/edged/v1/models/digits/rollback").status_code == 200
    swap = daemon.updates()[0]["report"]["rollback"]
    with capsys.disabled():
        print(f"{swap['free_bytes'] // MIB} MiB free, {swap['needed_bytes'] // MIB} needed: by {swap['policy']}")
    assert (swap["policy"], swap["asked"]) == ("resource", "auto")
    assert swap["free_bytes"] < swap["needed_bytes"]
    assert daemon.metric('edged_swaps_total{model="digits",policy="resource"}') == 1
    assert daemon.killed_for_memory() == 1
    assert daemon.infer(next(task.test.rglob("*.png"))).json()["model_version"] == "1"

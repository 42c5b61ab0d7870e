"""A real worker process: what it tells, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from edged.artifacts.reader import read_artifact
from edged.spec import Method, QuantSpec, Scheme
from service.journal.states import STAGES
from service.outcomes import Failure
from service.system.oom_kills import OomKills
from service.worker.hold_back import QUIET_S, HoldBack
from service.worker.job import Job
from service.worker.process import Done, WorkerLimits, WorkerProcess, cause_of_kill
from service.worker.sandbox import AUTO, OFF, REQUIRE, available, lacking
from tests.support.fake_gpu import FakeTensorRt
from tests.support.tasks import Task

AT_ONCE = WorkerLimits(deadline_s=280, nice=0)  # also on a busy machine


@pytest.fixture
def job(task: Task, tmp_path: Path) -> Job:
    size = {"size": 8, "resize": 8}
    return Job(task.first, tmp_path / "out", task.calibration, tmp_path / "cache", input=size, threads=1)


async def ignore(_: dict[str, Any]) -> None:
    """Take an event of the worker."""


def run(
    job: Job, limits: WorkerLimits = AT_ONCE, at: Callable[[WorkerProcess, dict[str, Any]], None] = lambda w, e: None
) -> tuple[Done | Failure, list[dict[str, Any]], WorkerProcess]:
    events: list[dict[str, Any]] = []

    async def told(event: dict[str, Any]) -> None:
        events.append(event)
        at(worker, event)

    worker = WorkerProcess(job, limits, told)
    outcome = asyncio.run(worker.run())
    assert worker.pid is not None
    assert not psutil.pid_exists(worker.pid)
    return outcome, events, worker


def test_a_good_job(job: Job) -> None:
    outcome, events, worker = run(job)
    assert isinstance(outcome, Done)
    assert max(used for _, used in worker.memory.points) == worker.peak_bytes > 50e6
    assert 0 < worker.memory.points[-1][0] < AT_ONCE.deadline_s
    assert outcome.totals == read_artifact(job.out).report["totals"]
    ended = [e["stage"] for e in events if e["event"] == "stage" and e["state"] == "end"]
    assert [stage for stage in ended if stage in STAGES] == list(STAGES)
    assert any(e["event"] == "progress" and e["stage"] != "" and e["done"] <= e["total"] for e in events)


def test_a_bad_file_is_permanent_and_missing_images_are_not(job: Job, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"")
    outcome, _, _ = run(replace(job, checkpoint=bad))
    assert outcome == Failure("checkpoint", "bad.pt: the file is empty; copy it again", permanent=True)
    outcome, _, _ = run(replace(job, calibration_dir=tmp_path / "nowhere"))
    assert isinstance(outcome, Failure)
    assert (outcome.code, outcome.permanent) == ("calibration", False)


class WaitsAtFirst:
    """Finds that a process waits for a core, once."""

    def __init__(self, pid: int, now: float) -> None:
        self.waits_for: str | None = None
        self._looks = 0

    def check(self, now: float) -> None:
        self._looks += 1
        self.waits_for = "a core" if self._looks == 1 else None


def test_what_the_worker_waits_for_is_reported_once(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.worker.process.Starvation", WaitsAtFirst)
    _, events, _ = run(job)
    assert [event["for"] for event in events if event["event"] == "waits"] == ["a core", None]


def shot(job: Job, number: int, stage: str) -> Failure:
    """How a worker ends that is sent a signal in a stage."""

    def shoot(worker: WorkerProcess, event: dict[str, Any]) -> None:
        assert worker.pid is not None
        if event.get("stage") == stage:
            with contextlib.suppress(ProcessLookupError):  # it may have sent two events before it died
                os.kill(worker.pid, number)

    outcome, _, _ = run(job, at=shoot)
    assert isinstance(outcome, Failure)
    assert not outcome.permanent
    return outcome


def test_a_worker_that_dies(job: Job) -> None:
    died = shot(job, signal.SIGSEGV, "calibrate")
    assert died.code == "crash"
    assert re.fullmatch(r"the worker died of SIGSEGV in stage calibrate.*, with \d.* MiB in memory", died.reason)


def test_the_note_of_a_killed_worker_claims_only_what_is_known(job: Job) -> None:
    killed = shot(job, signal.SIGKILL, "verify")
    now = OomKills.read()
    code, cause = cause_of_kill(now.since(now))  # no process of this group was killed for lack of memory
    assert (killed.code, "for lack of memory meanwhile" in cause or "cannot be read" in cause) == (code, True)
    assert killed.reason.startswith("the worker was killed (SIGKILL) in stage ")
    assert killed.reason.endswith(f"; {cause}")


@pytest.mark.parametrize(
    ("kills", "code", "cause"),
    [
        (OomKills(1, 5), "memory", "the kernel killed it for lack of memory, as the count of its control group says"),
        (OomKills(0, 1), "crash", "another program or a user sent the signal: the kernel counts no kill for lack"),
        (
            OomKills(None, 2),
            "memory",
            "the kernel killed 2 process(es) of this machine for lack of memory",
        ),
        (OomKills(None, 0), "crash", "another program or a user sent the signal: the kernel counts no kill for lack"),
        (OomKills(None, None), "crash", "the cause is unknown: the kernel's counts of kills for lack of memory cannot"),
    ],
)
def test_lack_of_memory_is_a_cause_only_where_the_kernel_counts_it(kills: OomKills, code: str, cause: str) -> None:
    found = cause_of_kill(kills)
    assert (found[0], found[1].startswith(cause)) == (code, True)


def test_a_worker_that_hangs(job: Job) -> None:
    def freeze(worker: WorkerProcess, _: dict[str, Any]) -> None:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)

    outcome, _, _ = run(job, replace(AT_ONCE, deadline_s=4), at=freeze)
    assert isinstance(outcome, Failure)
    assert (outcome.code, outcome.permanent) == ("timeout", False)
    text = r"not done after worker\.deadline_s = 4 s, in which it computed for \d+\.\d s; raise it"
    assert re.fullmatch(text, outcome.reason)


def test_a_worker_that_gets_no_core(job: Job) -> None:
    """One that stands still from its start, at the lowest priority."""
    worker = WorkerProcess(job, WorkerLimits(deadline_s=1, nice=19), ignore)

    async def stopped() -> Done | Failure:
        running = asyncio.create_task(worker.run())
        while worker.pid is None:
            await asyncio.sleep(0)
        os.kill(worker.pid, signal.SIGSTOP)
        return await running

    outcome = asyncio.run(stopped())
    assert isinstance(outcome, Failure)
    assert outcome.reason.endswith(" s; other programs take the cores: lower worker.nice = 19 or raise it")


def test_a_worker_that_takes_too_much(job: Job) -> None:
    outcome, _, worker = run(job, WorkerLimits(memory_max=40 << 20, nice=0))
    assert isinstance(outcome, Failure)
    assert outcome.code == "memory"
    assert worker.peak_bytes > 40 << 20


def test_a_full_disk_is_no_fault_of_the_file(job: Job, tmp_path: Path) -> None:
    in_the_way = tmp_path / "plain"
    in_the_way.write_text("")
    outcome, _, _ = run(replace(job, cache_root=in_the_way / "cache"))
    assert isinstance(outcome, Failure)
    assert (outcome.code, outcome.permanent) == ("state", False)


def test_cancelling_ends_the_process(job: Job) -> None:
    async def main() -> int:
        begun = asyncio.Event()

        async def told(_: dict[str, Any]) -> None:
            begun.set()

        worker = WorkerProcess(job, AT_ONCE, told)
        task = asyncio.create_task(worker.run())
        await asyncio.wait_for(begun.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert worker.pid is not None
        return worker.pid

    assert not psutil.pid_exists(asyncio.run(main()))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="on one core there is none to leave to requests")
def test_requests_change_nothing_of_the_result(job: Job, tmp_path: Path) -> None:
    """The worker loses a core and gets it back at each of its events, and measures with all cores."""
    cores = os.sched_getaffinity(0)
    job = replace(job, threads=len(cores), held_back=True)
    now = 0.0
    hold_back = HoldBack(clock=lambda: now)
    counts: list[int] = []

    async def flip(event: dict[str, Any]) -> None:
        nonlocal now
        assert worker.pid is not None
        if event["event"] == "measure":  # whether requests arrive or not
            counts.append(len(os.sched_getaffinity(worker.pid)) if event["state"] == "begin" else 0)
        now += QUIET_S
        if len(seen) % 2:
            hold_back.check()
        else:
            hold_back.note_request()
        seen.append(len(os.sched_getaffinity(worker.pid)))

    seen: list[int] = []
    worker = WorkerProcess(replace(job, out=tmp_path / "flipped"), AT_ONCE, flip, hold_back=hold_back)
    assert isinstance(asyncio.run(worker.run()), Done)
    assert {len(cores), len(cores) - 1} <= set(seen)
    assert counts[:2] == [len(cores), 0]
    assert worker.held_back_s > 0
    calm, _, _ = run(job)
    assert isinstance(calm, Done)
    flipped, calmly = (read_artifact(out).directory / "weights.safetensors" for out in (tmp_path / "flipped", job.out))
    assert flipped.read_bytes() == calmly.read_bytes()


def test_a_confined_worker_has_tensorrt_build_its_engine(job: Job, tmp_path: Path, fake_tensorrt: FakeTensorRt) -> None:
    """In a program of its own, which is confined with it."""
    spec = QuantSpec(method=Method.RTN, bits=6, activation_bits=8, scheme=Scheme.SYMMETRIC)
    job = replace(job, spec=spec, runtime="tensorrt", engine_folder=tmp_path / "engines", sandbox=needed())
    outcome, events, _ = run(job)
    assert isinstance(outcome, Done), outcome
    assert next(each for each in events if each["event"] == "sandbox")["lacking"] == {} or job.sandbox == AUTO
    candidates = outcome.totals["candidates"]
    assert [(each["engine"], each["chosen"]) for each in candidates] == [("tensorrt", True)], candidates
    assert list((tmp_path / "engines").glob("*/engine.plan"))


def test_images_where_links_lead_are_read_in_the_sandbox(job: Job, tmp_path: Path) -> None:
    """A folder that is a link, with links to files and to a folder."""
    away, place = tmp_path / "away", tmp_path / "place"
    for folder in sorted(job.calibration_dir.iterdir()):
        (place / folder.name).mkdir(parents=True)
        for file in folder.iterdir():
            (place / folder.name / file.name).symlink_to(file)
    away.symlink_to(place)
    (place / "0").rename(tmp_path / "zero")
    (place / "0").symlink_to(tmp_path / "zero")
    outcome, _, _ = run(replace(job, calibration_dir=away, sandbox=needed(), private=(tmp_path,)), AT_ONCE)
    assert isinstance(outcome, Done), outcome
    assert read_artifact(job.out).report["skipped_images"] == []


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch"])
def test_the_sandbox_changes_no_codes(job: Job, tmp_path: Path, runtime: str) -> None:
    written = {}
    for sandbox in (OFF, needed()):
        own = replace(
            job, out=tmp_path / sandbox, cache_root=tmp_path / f"cache-{sandbox}", engine_folder=tmp_path / "e"
        )
        outcome, _, _ = run(replace(own, runtime=runtime, sandbox=sandbox), AT_ONCE)
        assert isinstance(outcome, Done), outcome
        written[sandbox] = (own.out / "weights.safetensors").read_bytes()
    assert written[OFF] == written[needed()]


def needed() -> str:
    """Return the strictest mode of the sandbox that this machine has."""
    return AUTO if lacking(available()) else REQUIRE

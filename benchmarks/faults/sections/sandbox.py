"""A compromised worker: it tries what could do harm, with and without its sandbox, as root and as a user."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo import digits
from benchmarks.faults.section import Row
from benchmarks.markdown import table
from benchmarks.takeover.attempts import ATTEMPTS, NEEDED
from benchmarks.takeover.runs import NOBODY, Prepared, Taken, python_of
from service.outcomes import Failure
from service.worker.job import Job
from service.worker.process import WorkerLimits, WorkerProcess
from service.worker.sandbox import OFF, REQUIRE

TITLE = "A compromised worker"
MODEL = {"quantization": {"bits": 4, "activation_bits": None}, "runtime": "onnxruntime", "probation_s": 0}
USERS = {"root": 0, "user": NOBODY}
TIMES = 10
_SPEED = "speed"


def measure(options: argparse.Namespace) -> list[Row]:
    """Return a row for each attempt, and one for the speed of a worker.

    Raises:
        RuntimeError: This machine gives no sandbox, or has no user that can run Python.
    """
    with tempfile.TemporaryDirectory(prefix="edged-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        checkpoint, images = _task(folder)
        prepared = Prepared(_made(folder / "prepared"), checkpoint, images, MODEL | {"input": _input()})
        taken: dict[str, Taken] = {}
        for user, uid in USERS.items():
            if python_of(uid) is None:
                raise RuntimeError(f"cannot run Python with these packages as {user}; run this as root")
            for sandbox in (OFF, REQUIRE):
                taken[f"{user}_{sandbox}"] = prepared.take_over(_made(folder / f"{user}-{sandbox}"), uid, sandbox)
        rows = [_row(attempt, taken) for attempt in (*ATTEMPTS, *NEEDED)]
        rows[0]["faults"] += [f"{run}: the daemon did not go on" for run, each in taken.items() if not each.alive]
        return [*rows, _speed(folder, checkpoint, images, options.times or TIMES)]


def _row(attempt: str, taken: dict[str, Taken]) -> Row:
    worked = {run: not each.results[attempt] for run, each in taken.items()}
    wanted = attempt in NEEDED
    faults = [f"{attempt} as {user}" for user in USERS if worked[f"{user}_{REQUIRE}"] is not wanted]
    if not worked[f"root_{OFF}"]:
        faults.append(f"{attempt} does not work without the sandbox either")
    return {"attempt": attempt, "needed": wanted, **worked, "faults": faults}


def _speed(folder: Path, checkpoint: Path, images: Path, times: int) -> Row:
    """Time workers with and without the sandbox in turn, and compare what they have written."""
    seconds: dict[str, list[float]] = {OFF: [], REQUIRE: []}
    digests = set()
    for index in range(times):
        for sandbox in (OFF, REQUIRE) if index % 2 else (REQUIRE, OFF):
            place = _made(folder / f"{sandbox}-{index}")
            options = {"input": _input(), "runtime": "onnxruntime", "threads": 1, "sandbox": sandbox}
            job = Job(checkpoint, place / "artifact", images, place / "cache", **options)
            start = time.monotonic()
            outcome = asyncio.run(WorkerProcess(job, WorkerLimits(nice=0), _ignore).run())
            seconds[sandbox].append(time.monotonic() - start)
            if isinstance(outcome, Failure):
                raise RuntimeError(outcome.reason)
            digests.add(hashlib.sha256((job.out / "weights.safetensors").read_bytes()).hexdigest())
    ratios = [confined / free for confined, free in zip(seconds[REQUIRE], seconds[OFF], strict=True)]
    medians = {sandbox: round(statistics.median(values), 2) for sandbox, values in seconds.items()}
    ratio = round(statistics.median(ratios), 3)
    faults = [] if len(digests) == 1 else ["the sandbox changes codes"]
    return {
        "attempt": _SPEED,
        "times": times,
        "ratio": ratio,
        **medians,
        "faults": faults,
    }


def page(rows: list[Row]) -> str:
    """Return text and table."""
    tried = [row for row in rows if row["attempt"] != _SPEED and not row["needed"]]
    needed = [row for row in rows if row["attempt"] != _SPEED and row["needed"]]
    speed = next(row for row in rows if row["attempt"] == _SPEED)
    runs = [f"{user}_{sandbox}" for sandbox in (OFF, REQUIRE) for user in USERS]
    worked = {run: sum(row[run] for row in tried) for run in runs}
    text = (
        "A daemon with two models, whose worker runs somebody else's code from the moment when it would read its"
        " checkpoint (`benchmarks/takeover/`). Whatever works is really done: the journal is changed, a generation is"
        " traced, a connection is made. Without the sandbox (`worker.sandbox: off`) the worker of root's daemon could"
        f" do {worked[f'root_{OFF}']} of {len(tried)} things, and that of a user {worked[f'user_{OFF}']}; in the"
        f" sandbox {worked[f'root_{REQUIRE}']} and {worked[f'user_{REQUIRE}']}. It could do what its work takes:"
        f" {', '.join(row['attempt'] for row in needed)}. The daemon and its other model went on in all four runs,"
        " and the update was REJECTED."
    )
    cost = (
        f"Workers that quantize a ResNet-20 took {speed['ratio']:.2f} times as long in the sandbox as without it: the"
        f" median of the ratios of {speed['times']} pairs. The medians of the times were {speed[REQUIRE]} s in the"
        f" sandbox and {speed[OFF]} s without it. All wrote the same codes."
    )
    lines = [(row["attempt"], *("yes" if row[run] else "no" for run in runs)) for row in tried]
    lines.append(("**all**", *worked.values()))
    header = ("attempt", "root", "user", "root in the sandbox", "user in the sandbox")
    return f"{text}\n\n{cost}\n\n{table(header, lines)}"


def _task(folder: Path) -> tuple[Path, Path]:
    """Train a network on digits; return its checkpoint and calibration images."""
    data = digits.load()
    digits.write_folders(data, slice(0, 200), folder / "images")
    torch.save(digits.train(data, epochs=2).state_dict(), folder / "checkpoint.pt")
    return folder / "checkpoint.pt", folder / "images"


def _input() -> dict[str, int]:
    return {"size": digits.SIDE, "resize": digits.SIDE}


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def _ignore(_: dict[str, Any]) -> None:
    """Take an event of the worker."""

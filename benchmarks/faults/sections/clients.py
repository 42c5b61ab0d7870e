"""Clients that hold up heads, connections, bodies and parsers: what they cost the supervisor, and other clients."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.crowd import HALF_A_HEAD, MIB, Crowd, crowd, length
from benchmarks.faults.section import Row
from benchmarks.markdown import table
from benchmarks.serving.daemon import MODEL, NETWORK, PREPARES, Edged, checkpoint, image_call
from benchmarks.serving.load import Answer, Call, Connection, Load, latency
from benchmarks.serving.processes import repeating

TITLE = "Clients"
MOST_MIB = 128 + 15  # gRPC takes 15 by itself
OTHER, SIDE = "other", 128
BODY_BYTES = 60_000_000
_SECONDS, _QUIET_S = 8.0, 8.0  # under attack, and before
MOST_SLOWER = 2.0  # times the p99 of others may be that before
_RATE, _CONNECTIONS = 20, 4  # of the requests of others to each model
_SETTLES_S, _SETTLED_S = 30.0, 0.5
_SAMPLE_S = 0.05  # between two looks at the memory
_HEAD = HALF_A_HEAD % MODEL.encode()
_INPUT = b'{"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 128, 128], "data": ['
_JSON_BYTES = 15 * MIB  # of those that are read; the limit is 16 MiB


@dataclass(frozen=True)
class Others:
    """What other clients got.

    Attributes:
        answers: Answers of each model.
        cpu_percent: Processor time of the supervisor meanwhile, in percent of one core.
    """

    answers: tuple[list[Answer], ...]
    cpu_percent: float


@dataclass(frozen=True)
class Attack:
    """What hostile clients do.

    Attributes:
        title: Name on the page.
        begin: Opens connections and sends over them.
        call: Request that one client repeats meanwhile; None for none.
    """

    title: str
    begin: Callable[[Crowd], None] = lambda _: None
    call: Call | None = None


def measure(_: argparse.Namespace) -> list[Row]:
    """Try every attack on one daemon, one after the other."""
    with tempfile.TemporaryDirectory(prefix="edged-") as name:
        folder = Path(name)
        other: dict[str, Any] = {"name": OTHER, "calibration": {"dir": str(folder / "digits"), "images": 32}}
        other |= {"quantization": {"recipe": "fast", "method": "rtn"}, "gates": {"min_agreement": 0}}
        other |= {"input": {"size": SIDE, "resize": SIDE}, "probation_s": 0}
        serve = {"port": 0, "grpc_port": 0}
        with Edged(folder, side=SIDE, others=[other], worker=PREPARES, serve=serve) as edged:
            edged.put_live()
            edged.drop(checkpoint(NETWORK, 9, folder / "other.pt"), OTHER)
            edged.update_of("other.pt", "COMMITTED")
            return [_tried(edged, folder / "log", attack) for attack in _attacks()]


def _attacks() -> Iterator[Attack]:
    path = f"/v2/models/{MODEL}/infer"
    yield Attack("500 heads that do not end", lambda made: _open(made, 500, _HEAD))
    for count in (1000, 1500):
        yield Attack(f"{count:,} connections without requests", lambda made, count=count: _open(made, count))
    for count in (30, 300):
        yield Attack(f"{count} bodies of 60 MB that do not end", lambda made, count=count: _unfinished(made, count))
    begun = _HEAD + length(BODY_BYTES) + b"1"
    yield Attack("1,000 bodies of 60 MB of which one byte came", lambda made: _open(made, 1000, begun))
    yield Attack("60 MB of JSON, repeated", call=Call(path, _numbers(BODY_BYTES)))
    yield Attack("15 MiB of numbers as JSON, repeated", call=Call(path, _numbers(_JSON_BYTES)))
    nothing = _INPUT + b"{}," * (_JSON_BYTES // 3) + b"{}]}]}"
    yield Attack("15 MiB of empty objects as JSON, repeated", call=Call(path, nothing))
    yield Attack("wrong tokens, as fast as they are answered", lambda made: _open(made, 200, _guess()))


def _open(made: Crowd, count: int, data: bytes = b"") -> None:
    made.open(count, data)


def _unfinished(made: Crowd, count: int) -> None:
    made.open(count, _HEAD + length(BODY_BYTES))
    made.push(bytes(BODY_BYTES - 1))


def _numbers(size: int) -> bytes:
    return _INPUT + b"0.1234567," * (size // 10) + b"0]}]}"


def _guess() -> bytes:
    head = b"POST /edged/v1/models/%s/pause HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer guess\r\n"
    return (head % MODEL.encode() + b"Content-Length: 0\r\n\r\n") * 20


def _tried(edged: Edged, log: Path, attack: Attack) -> Row:
    """Measure others before and during an attack, and what is left of it."""
    supervisor = psutil.Process(edged.pid)
    quiet = _others(edged, supervisor, _QUIET_S)
    before, logged = supervisor.num_fds(), len(log.read_text())
    resident: list[int] = []
    sampling = repeating(lambda: resident.append(supervisor.memory_info().rss), _SAMPLE_S)
    with sampling, crowd(edged.address) as made:
        with _asking(edged) as beginning:
            attack.begin(made)
            _taken_in(supervisor)
        with _repeated(edged, attack.call) as outcomes:
            during = _others(edged, supervisor, _SECONDS)
    left = _settled(supervisor, before)
    row: Row = {"attack": attack.title, "resident_mib": max(resident) // MIB, "descriptors_lost": max(0, left - before)}
    row["answers"] = dict(Counter(outcomes))
    row["worst_at_first_ms"] = round(max(latency(load.answers).worst for load in beginning if load.answers))
    row["cpu_percent"] = {"quiet": quiet.cpu_percent, "attacked": during.cpu_percent}
    row["slower"] = {}
    for name, answers, calm in zip((MODEL, OTHER), during.answers, quiet.answers, strict=True):
        before_it, attacked = latency(calm), latency(answers)
        row[name] = {"quiet": vars(before_it), "attacked": vars(attacked)}
        row["slower"][name] = round(attacked.p99 / before_it.p99, 1)
    row["faults"] = [
        *_log_faults(log.read_text()[logged:]),
        *_failures([*(load.answers for load in beginning), *during.answers]),
    ]
    if row["resident_mib"] >= MOST_MIB:
        row["faults"].append(f"the supervisor took {row['resident_mib']} MiB")
    if left > before:
        row["faults"].append(f"{left - before} descriptors were lost")
    return row


def _others(edged: Edged, supervisor: psutil.Process, seconds: float) -> Others:
    """Send the requests of other clients to both models."""
    with _asking(edged) as loads:
        start, before = time.monotonic(), supervisor.cpu_times()
        time.sleep(seconds)
        after = supervisor.cpu_times()
        percent = 100 * (after.user + after.system - before.user - before.system) / (time.monotonic() - start)
    return Others(tuple(load.answers for load in loads), round(percent))


@contextlib.contextmanager
def _asking(edged: Edged) -> Iterator[list[Load]]:
    """Send the requests of other clients to both models during the block."""
    loads = [Load(edged.address, image_call(name, SIDE), _RATE, _CONNECTIONS) for name in (MODEL, OTHER)]
    with loads[0], loads[1]:
        yield loads


@contextlib.contextmanager
def _repeated(edged: Edged, call: Call | None) -> Iterator[list[int]]:
    """Repeat a request over one connection; yield the statuses."""
    outcomes: list[int] = []
    if call is None:
        yield outcomes
        return
    with (
        contextlib.closing(Connection(edged.address)) as connection,
        repeating(lambda: outcomes.append(connection.ask(call).status)),
    ):
        yield outcomes


def _taken_in(process: psutil.Process) -> None:
    """Wait until a process opens no more descriptors: the kernel accepts connections before it does."""
    end = time.monotonic() + _SETTLES_S
    count, since = process.num_fds(), time.monotonic()
    while time.monotonic() < min(since + _SETTLED_S, end):
        time.sleep(0.05)
        if (now := process.num_fds()) > count:
            count, since = now, time.monotonic()


def _settled(process: psutil.Process, before: int) -> int:
    """Return how many descriptors a process has once those of the attack are closed."""
    end = time.monotonic() + _SETTLES_S
    while (now := process.num_fds()) > before and time.monotonic() < end:
        time.sleep(0.1)
    return now


def _failures(loads: Iterable[list[Answer]]) -> list[str]:
    failed = Counter(
        f"{answer.status} {answer.body[:60]!r}" for answers in loads for answer in answers if answer.failed
    )
    return [f"{count} requests of others failed: {what}" for what, count in failed.items()]


def _log_faults(text: str) -> list[str]:
    """Return what a log has of an attack that it should not have: tracebacks, and more than a line of a kind."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    kinds = Counter(re.sub(r"[0-9]+", "N", line["message"]).split(":")[0] for line in lines)
    faults = [f"{count} lines in the log: {kind:.60}" for kind, count in kinds.items() if count > 1]
    return [*faults, *(["a traceback in the log"] if "Traceback" in text else [])]


def page(rows: list[Row]) -> str:
    """Return text and table."""
    lines = [
        (
            *(row["attack"], row["resident_mib"], row["cpu_percent"]["quiet"], row["cpu_percent"]["attacked"]),
            *(row["slower"][MODEL], row["slower"][OTHER], "met" if _is_met(row) else "missed"),
            *(row["worst_at_first_ms"], row["descriptors_lost"], len(row["faults"])),
        )
        for row in rows
    ]
    text = (
        f"Each attack lasts for {_SECONDS:g} s on one daemon with two models, gRPC and default limits. Other clients"
        f" ask each model {_RATE} times a second, also for {_QUIET_S:g} s before; requests that an attacker repeats ask"
        " the first one. Memory is the most resident memory of the supervisor, with the shared memory of bodies. At"
        " most 128 MiB are allowed, and 15 MiB more because gRPC is on. CPU is the processor time of the supervisor"
        " before the attack and during it, in percent of one core. Faults are more memory than that, failed requests"
        " of other clients, descriptors that stay open, a traceback in the log, or more than one line of a kind there."
    )
    slower = (
        f"The p99 of other clients is to stay within {MOST_SLOWER:g} times that before the attack:"
        f" {sum(map(_is_met, rows))} of {len(rows)} attacks met that for both models. That is counted once all"
        " connections of an attack are accepted; the longest time that a request of others took until then is in the"
        ' column "at first". Attackers and clients share one process and the two cores, which other work used as well,'
        f" and a p99 is of {_RATE * _SECONDS:.0f} requests, so one pause decides it: a miss is not counted as a fault."
    )
    header = (
        *("attack", "supervisor, MiB", "CPU before, %", "CPU, %", "p99 of the first model, times that before"),
        *("of the other", f"within {MOST_SLOWER:g} times", "at first, ms", "descriptors lost", "faults"),
    )
    faults = "; ".join(f"{row['attack']}: {fault}" for row in rows for fault in row["faults"])
    return f"{text}\n\n{slower}\n\n{table(header, lines)}" + (f"\n\nFaults: {faults}." if faults else "")


def _is_met(row: Row) -> bool:
    return all(ratio <= MOST_SLOWER for ratio in row["slower"].values())

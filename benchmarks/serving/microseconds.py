"""Measure where the time of a request goes: CPU microseconds of the supervisor and of the generation, by part.

The network computes nothing, and images are not prepared. The CPU time of each process is that of the kernel's
accounts, for requests one at a time; py-spy (in the extra `bench`), in a second round, says how it divides. Samples
in which a process waits do not count, so what the kernel takes to wake it is divided among the others.

Usage: python -m benchmarks.serving.microseconds
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from benchmarks.options import parser_of
from benchmarks.serving.closed_load import HttpClient
from benchmarks.serving.daemon import MODEL, PREPARES, Edged
from benchmarks.serving.payloads import SIDE, payloads
from benchmarks.serving.peers.server import Peer
from benchmarks.serving.processes import repeating

REQUESTS = 3000
_SPIED_S = 8
_RATE = 500  # samples a second
# Part -> what one of the frames of a sample contains; the first frame from the inside that fits any of them counts.
SUPERVISOR = {
    "receive the head and the body": r"_read_ready__get_buffer",
    "parse the head": r"httptools_impl|Protocol\.on_(message_begin|header|body)",
    "admit: model, token, sizes, place": r"_begin_direct|InferenceRoute\.admit|(bodies|fields)\.py|BodyMemory\.take",
    "queue and send to the generation": r"Channel\.(begin|_start|_send|_send_more)|frames\.py.*head|^head ",
    "receive the reply": r"Channel\.(data_received|_dispatch|_settle)|_ready__data_received|Decoder|_parse|_reply ",
    "write the response": r"answer_of|_head_of|Protocol\._send_answer|Protocol\.on_response_complete",
    "count: statistics, metrics": r"count_request|_Counting|request_stats|inference_stats",
    "route: swaps, waiting, sampling": r"ModelServer|Generation\.begin|InferenceRoute\.begin|Admission\.respond",
    "the event loop itself": r"BaseEventLoop|Handle\._run|create_task|Protocol\.on_message_complete|buffer_updated",
}
GENERATION = {
    "send the reply": r"SocketIO\.write|write_blocking|Outbox\.send",
    "read the frame": r"Inbox\.read|read_blocking|_parse",
    "parse the request": r"parse_request|ServedModel\.prepare|Server\._prepare",
    "outputs": r"ServedModel\._answer|answer_together|Server\._compute|format_response",
}
_WAITS = ("EpollSelector.select", "SocketIO.readinto")
_OTHER = "other"


def main() -> None:
    """Print a table for each payload."""
    parser_of(__doc__).parse_args()
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        sys.exit("py-spy is not installed; pip install 'edged[bench]'")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        edged, bare = Edged(folder, side=SIDE, altered="bare", worker=PREPARES), Peer("uvicorn", None, folder, [], SIDE)
        with edged, bare:
            edged.put_live()
            for payload in payloads().values():
                call = payload.call(MODEL)
                bare_us = _spent_us(bare.pid, HttpClient(bare.address, call))
                print(f"\n{payload.title}; a bare uvicorn takes {bare_us:.0f} us of CPU", flush=True)
                _show_processes(spy, edged, HttpClient(edged.address, call), folder / "samples")


def _show_processes(spy: str, edged: Edged, client: HttpClient, file: Path) -> None:
    pids = {"supervisor": edged.pid, "generation": edged.generation_pid()}
    spent = {name: _spent_us(pid, client) for name, pid in pids.items()}
    for name, parts in (("supervisor", SUPERVISOR), ("generation", GENERATION)):
        _show(name, spent[name], _shares(_spied(spy, pids[name], client, file), parts))
    client.close()


def divide(samples: Sequence[tuple[Sequence[str], int]], parts: Mapping[str, str]) -> Counter[str]:
    """Return the number of samples in each part.

    Args:
        samples: Frames from the outside in, and how often they were found.
        parts: Part -> pattern of its frames.
    """
    found: Counter[str] = Counter()
    for frames, count in samples:
        named = (part for frame in reversed(frames) for part, pattern in parts.items() if re.search(pattern, frame))
        found[next(named, _OTHER)] += count
    return found


def _spent_us(pid: int, client: HttpClient) -> float:
    """Return the CPU microseconds that a process takes for a request."""
    client.send(REQUESTS // 10)
    process = psutil.Process(pid)
    before = process.cpu_times()
    client.send(REQUESTS)
    after = process.cpu_times()
    return 1e6 * (after.user + after.system - before.user - before.system) / REQUESTS


def _spied(spy: str, pid: int, client: HttpClient, file: Path) -> list[tuple[list[str], int]]:
    """Return samples of the main thread of a process while it answers."""
    options = ["-r", str(_RATE), "-d", str(_SPIED_S), "-f", "raw", "-o", str(file), "-p", str(pid)]
    with repeating(lambda: client.send(100)):
        subprocess.run([spy, "record", *options], check=True, capture_output=True)
    samples = []
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if "threading.py" not in stack and not frames[-1].startswith(_WAITS):  # other threads only wait, too
            samples.append((frames, int(count)))
    return samples


def _shares(samples: Sequence[tuple[Sequence[str], int]], parts: Mapping[str, str]) -> dict[str, float]:
    found = divide(samples, parts)
    return {part: found[part] / found.total() for part in (*parts, _OTHER)}


def _show(process: str, spent_us: float, shares: Mapping[str, float]) -> None:
    print(f"| {process} | {spent_us:.0f} |")
    for part, share in shares.items():
        print(f"| {part} | {spent_us * share:.0f} |")


if __name__ == "__main__":
    main()

"""A fuzzer on what clients and children send: over HTTP and gRPC to a daemon, and frames to the supervisor."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, seed
from hypothesis import strategies as st

from benchmarks.faults.section import Row
from benchmarks.fuzz.requests import MODEL, TOKEN, frame_streams, grpc_messages, http_requests, inference_requests
from benchmarks.fuzz.sockets import Batches
from benchmarks.fuzz.target import many
from benchmarks.markdown import table
from benchmarks.serving.daemon import PREPARES, Edged
from benchmarks.serving.load import Connection
from service.grpc.requests import parse_message, parts_of
from service.ipc import frames
from service.ipc.messages import RequestError

TITLE = "Fuzzed requests"
SEED, SIDE, AT_ONCE = 16, 8, 100
COUNT = 10_000
_NAMED = 5  # faults of a row


def measure(options: argparse.Namespace) -> list[Row]:
    """Send requests to a daemon, and read frames and messages in this process; return a row for each kind."""
    count = options.times or COUNT
    with tempfile.TemporaryDirectory(prefix="edged-") as name:
        folder = Path(name)
        (folder / "token").write_text(TOKEN)
        serve = {"port": 0, "token_file": str(folder / "token"), "head_timeout_s": 0.5, "body_timeout_s": 0.5}
        with Edged(folder, side=SIDE, worker=PREPARES, serve=serve) as edged:
            edged.put_live()
            rows = [
                _sent(edged, "HTTP: lines, fields, paths, lengths", http_requests(), count),
                _sent(edged, "bodies of the Open Inference Protocol", inference_requests(), count),
            ]
            aftermath = _aftermath(edged, (folder / "log").read_text())
            rows[-1]["faults"] += aftermath
            rows[-1]["crashes"] += len(aftermath)
    rows.append(_read("frames of a child", frame_streams(), _decode, count))
    rows.append(_read("messages over gRPC", grpc_messages(), _translate, count))
    return rows


def _sent(edged: Edged, kind: str, requests: st.SearchStrategy[bytes], count: int) -> Row:
    row = _row(kind)

    batches = Batches(edged.address, AT_ONCE)

    @seed(SEED)
    @many(count)
    @given(requests)
    def send(raw: bytes) -> None:
        batches.add(raw)

    def run() -> None:
        send()
        batches.flush()
        row.update(inputs=batches.sent, faults=batches.faults)

    return _timed(row, run)


def _aftermath(edged: Edged, log: str) -> list[str]:
    """Return what is wrong with a daemon afterwards."""
    with contextlib.closing(Connection(edged.address)) as connection:
        status = connection.ask(edged.call).status
    restarts = edged.get("/edged/v1/status")["models"][0]["restarts"]
    return [
        *([f"{MODEL} answers {status} afterwards"] if status != 200 else []),
        *([f"{restarts} restarts of a generation"] if restarts else []),
        *(f"the log has {text!r}" for text in ("Traceback", "a request failed") if text in log),
    ]


def _read(kind: str, inputs: st.SearchStrategy[Any], read: Callable[[Any], None], count: int) -> Row:
    row = _row(kind)

    @seed(SEED)
    @many(count)
    @given(inputs)
    def attempt(given_: Any) -> None:
        row["inputs"] += 1
        try:
            read(given_)
        except Exception as error:  # what the fuzzer looks for
            row["faults"].append(f"{error!r}: {given_!r:.300}")

    return _timed(row, attempt)


def _decode(pieces: list[bytes]) -> None:
    decoder = frames.Decoder()
    with contextlib.suppress(frames.FrameError):
        for piece in pieces:
            decoder.feed(piece)


def _translate(raw: bytes) -> None:
    with contextlib.suppress(RequestError):
        json.loads(parts_of(parse_message(raw)).header)


def _row(kind: str) -> Row:
    return {"kind": kind, "inputs": 0, "faults": []}


def _timed(row: Row, run: Callable[[], None]) -> Row:
    start = time.monotonic()
    run()
    return {**row, "crashes": len(row["faults"]), "faults": row["faults"][:_NAMED], "seconds": time.monotonic() - start}


def page(rows: list[Row]) -> str:
    """Return text and table."""
    lines = [(row["kind"], row["inputs"], row["crashes"]) for row in rows]
    total = sum(row["inputs"] for row in rows)
    lines.append(("**all**", total, sum(row["crashes"] for row in rows)))
    text = (
        f"{total} inputs, made by [hypothesis](https://hypothesis.readthedocs.io) (`benchmarks/fuzz/requests.py`): odd"
        " lines, fields, lengths, paths, numbers and values, some with edited bytes; those over HTTP go to a running"
        " daemon through raw sockets. A crash is a status 500, a response that does not come, a traceback in the log, a"
        " restarted generation, or an error that the code does not promise."
    )
    return f"{text}\n\n{table(('kind of input', 'inputs', 'crashes'), lines)}"

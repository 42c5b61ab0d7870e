"""Serve one published model over a socket, in a process that `service.inference.fork_server` has forked."""

from __future__ import annotations

import argparse
import mmap
import socket
import time
from http import HTTPStatus
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import torch

from edged.artifacts.reader import read_artifact
from edged.artifacts.warmup import Comparison
from edged.errors import EdgedError
from service.inference.binary import bodies_of
from service.inference.model import ServedModel
from service.inference.observation import observing
from service.inference.responses import Answer
from service.inference.server import BatchServer
from service.ipc import frames
from service.ipc.frames import Outbox
from service.ipc.options import Batching
from service.ipc.shared_memory import Inbox, receive_memory
from service.system.processes import at_background_priority, die_with_parent, preferred_oom_victim


def serve(stream: BufferedIOBase, served: ServedModel, memory: mmap.mmap | None = None) -> None:
    """Answer frames one after another until the supervisor closes the stream."""
    inbox, outbox = Inbox(stream, memory), Outbox(stream)
    observation = observing(served, outbox)
    while (frame := inbox.read()) is not None:
        header, body = frame
        start = time.monotonic()
        request = served.prepare(*bodies_of(header, body))
        answer = request if isinstance(request, Answer) else served.answer_together([request])[0]
        told = {"status": answer.status, "seconds": time.monotonic() - start, "json_bytes": answer.body.json_bytes}
        outbox.send({"id": header["id"], **told}, answer.body.content)
        if "observe" in header and not isinstance(request, Answer) and answer.status == HTTPStatus.OK:
            observation.offer(header["observe"], request)


def main(arguments: list[str]) -> int:
    """Load, warm up, say so, serve."""
    parser = argparse.ArgumentParser(prog="service.inference.main")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--generation", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--beside", action="store_true", help="another one serves meanwhile: give way to it")
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("--max-delay-s", type=float, default=0.0)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    batching = Batching(options.max_batch, options.max_delay_s)
    compute_with(options.threads)
    with socket.socket(fileno=options.socket_fd) as connection, connection.makefile("rwb") as stream:
        try:
            memory = receive_memory(connection)
            with preferred_oom_victim():
                served, ready = at_background_priority(lambda: _load(options)) if options.beside else _load(options)
        except (ConnectionResetError, frames.FrameError):
            return 0  # the supervisor went away
        except EdgedError as error:
            frames.write_blocking(stream, {"kind": "failed", "code": error.code, "message": str(error)})
            return error.exit_code
        frames.write_blocking(stream, {"kind": "ready", **ready})
        try:
            if batching.max_batch > 1:
                BatchServer(stream, served, batching, memory).run()
            else:
                serve(stream, served, memory)
        except (BrokenPipeError, ConnectionResetError, frames.FrameError):
            return 0  # the supervisor went away
    return 0


def compute_with(threads: int) -> None:
    """In this thread. torch takes the number up when a thread first asks; by then it may have been told another."""
    torch.set_num_threads(threads)
    torch.get_num_threads()


def _load(options: argparse.Namespace) -> tuple[ServedModel, dict[str, Any]]:
    start = time.monotonic()
    compute_with(options.threads)
    artifact = read_artifact(options.artifact)
    served = ServedModel(artifact, options.model, options.generation, options.max_batch)
    loaded = time.monotonic()
    compared = served.warm(artifact.load_warmup())
    served.warm_batches()
    seconds = {"load_seconds": loaded - start, "warm_seconds": time.monotonic() - loaded}
    return served, {"metadata": served.metadata, "warmup": _told(compared), **seconds}


def _told(compared: Comparison | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    figures = {"relative_error": compared.relative_error, "outputs_sha256": compared.digest}
    return {"identical": compared.identical, **figures, "recorded_sha256": compared.recorded}

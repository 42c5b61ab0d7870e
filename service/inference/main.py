"""Serve one published model over a socket, in a process that `service.inference.fork_server` has forked."""

from __future__ import annotations

import argparse
import gc
import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from edged.artifacts.engines import engine_of, import_engine, open_executor
from edged.artifacts.reader import Artifact, read_artifact
from edged.artifacts.warmup import Comparison
from edged.errors import EdgedError
from edged.execution.executors import use_torch_threads
from edged.heap import trim_heap
from edged.spec import PROVIDERS, RUNTIMES
from service.inference.model import ServedModel
from service.inference.repair import with_repair
from service.inference.server import Server
from service.ipc import frames
from service.ipc.options import Batching
from service.ipc.shared_memory import receive_memory
from service.system.processes import (
    at_background_priority,
    die_with_parent,
    may_raise_priority,
    preferred_oom_victim,
    raise_threads,
)

_IDLE_S = 1.0  # for which each step of loading runs only on idle cores; small models need no more


def main(arguments: list[str]) -> int:
    """Load and warm up a model, report that it is ready, and serve it until the supervisor closes the socket."""
    parser = argparse.ArgumentParser(prog="service.inference.main")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--generation", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=["cpu"])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--beside", action="store_true", help="load at background priority, because another generation serves meanwhile"
    )
    parser.add_argument("--max-batch", type=int, default=1)
    parser.add_argument("--max-delay-s", type=float, default=0.0)
    parser.add_argument("--engine-cache", type=Path)
    parser.add_argument("--labels", action="store_true", help="the first frame has the names of the classes")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    code = 0
    # The supervisor may close the stream, or be killed, at any moment, even when it is flushed for the last time.
    ends = suppress(BrokenPipeError, ConnectionResetError, frames.FrameError)
    with ends, socket.socket(fileno=options.socket_fd) as connection, connection.makefile("rwb") as stream:
        code = _serve(options, connection, stream)
    return code  # noqa: RET504 - also if closing the stream failed, which `ends` suppressed


def _serve(options: argparse.Namespace, connection: socket.socket, stream: BufferedIOBase) -> int:
    """Load a model and serve it until the stream ends; return the exit code."""
    memory = receive_memory(connection)
    labels = _read_labels(stream) if options.labels else None
    try:
        with preferred_oom_victim():
            served, ready = _load(options, labels)
    except EdgedError as error:
        with suppress(BrokenPipeError, ConnectionResetError):
            frames.write_blocking(stream, {"kind": "failed", "code": error.code, "message": str(error)})
        return error.exit_code
    frames.write_blocking(stream, {"kind": "ready", **ready})
    Server(stream, served, Batching(options.max_batch, options.max_delay_s), memory).run()
    return 0


def _read_labels(stream: BufferedIOBase) -> list[str]:
    """Read the names of the classes, which are too long for the arguments of a process."""
    frame = frames.read_blocking(stream)
    if frame is None:
        raise frames.FrameError("stream ends before the labels")
    labels: list[str] = json.loads(frame[1])
    return labels


def _load(options: argparse.Namespace, labels: Sequence[str] | None) -> tuple[ServedModel, dict[str, Any]]:
    raised = options.beside and may_raise_priority()
    background = partial(at_background_priority, idle_s=_IDLE_S if raised else 0.0)
    run: Callable[[Callable[[], Any]], Any] = background if options.beside else _at_own_priority
    start = time.monotonic()
    artifact: Artifact = run(lambda: read_artifact(options.artifact))
    engine = engine_of(artifact, options.runtime)
    run(lambda: import_engine(engine))

    def load() -> ServedModel:
        executor = open_executor(
            artifact,
            engine,
            options.threads,
            options.device,
            options.engine_cache,
            options.providers,
            max_batch=options.max_batch,
        )
        return ServedModel(artifact, executor, options.model, options.generation, options.max_batch, labels)

    # ONNX Runtime's threads inherit the priority of the thread that loads the model, which few systems let them raise.
    load_at = run if raised or engine == "torch" else _at_own_priority
    served: ServedModel = load_at(load if engine == "torch" else lambda: with_repair(artifact.directory, load))
    if engine == "torch":
        use_torch_threads(options.threads)  # of this thread, which will compute
    loaded = time.monotonic()
    compared: Comparison | None = run(lambda: served.warm(artifact.load_warmup()))
    run(served.warm_batches)
    if raised:
        raise_threads()
    trim_heap()  # what loading took, which is more than the model
    gc.freeze()  # a collection that looks at all modules would hold up requests
    seconds = {"load_seconds": loaded - start, "warm_seconds": time.monotonic() - loaded}
    described = {"metadata": served.metadata, "artifact": _description(artifact), "warmup": _warmup_of(compared)}
    return served, {**described, **seconds}


def _at_own_priority(work: Callable[[], Any]) -> Any:
    return work()


def _description(artifact: Artifact) -> dict[str, Any]:
    """Return what people ask of a model in service: the file it was made of, and its bits."""
    manifest, activations = artifact.manifest, artifact.activations
    return {
        "file_name": manifest.source["name"],
        "bits": manifest.quantization["bits"],
        "activation_bits": None if activations is None else activations.bits,
    }


def _warmup_of(compared: Comparison | None) -> dict[str, Any] | None:
    if compared is None:
        return None
    values = {"relative_error": compared.relative_error, "outputs_sha256": compared.digest}
    return {"identical": compared.identical, **values, "recorded_sha256": compared.recorded}

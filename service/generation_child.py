"""`python -m service.generation_child ...`: holds one published model in memory and answers over a socket."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edged.artifacts.reader import Artifact, read_artifact
from edged.errors import EdgedError, GateError
from service import frames
from service.binary import Body, RequestError
from service.children import die_with_parent, give_way
from service.protocol import Request, error_body, metadata, parse_request
from service.responses import format_response
from service.tasks import task_of

log = logging.getLogger(__name__)

_WARM_PASSES = 3  # the first ones choose kernels and allocate


class NotFiniteError(Exception):
    """The network's outputs hold NaN or infinity."""


class ServedModel:
    """A published model in memory.

    Args:
        artifact: The model.
        model: Its name.
        version: Its generation.
    """

    def __init__(self, artifact: Artifact, model: str, version: str) -> None:
        self._name = model
        self._version = version
        self._input = artifact.input
        self._task = task_of(artifact)
        self._outputs = [output["name"] for output in self._task.described]
        network: nn.Module = artifact.load_model()
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self.metadata = metadata(model, version, artifact.input, self._task.described)

    def forward(self, images: Tensor) -> Tensor:
        """Raw outputs float32 [b, ...] of images [b, channels, size, size].

        Raises:
            NotFiniteError: They hold NaN or infinity.
        """
        with torch.inference_mode():
            outputs: Tensor = self._network(images.contiguous(memory_format=torch.channels_last)).float()
        if not bool(outputs.isfinite().all()):
            raise NotFiniteError("the model's output holds NaN or infinity for this input")
        return outputs

    def warm(self) -> None:
        """Answer requests of noise, all the way from the network to the outputs.

        Raises:
            GateError: The output is not what it must be.
        """
        shape = (1, self._input.channels, self._input.size, self._input.size)
        generator = torch.Generator().manual_seed(0)
        for _ in range(_WARM_PASSES):
            try:
                self._task.answer(Request(torch.randn(shape, generator=generator)), self._checked_forward)
            except NotFiniteError:
                raise self._unfit("outputs with NaN or infinity") from None

    def answer(self, body: Body) -> tuple[int, Body]:
        """Status and body of the response to one inference request."""
        try:
            request = parse_request(body, self._input, self._outputs)
            outputs = self._task.answer(request, self.forward)
            return 200, format_response(outputs, self._name, self._version, request.id, request.binary)
        except RequestError as error:
            return 400, Body(error_body(str(error)))
        except NotFiniteError as error:
            return 500, Body(error_body(str(error)))
        except Exception as error:  # one request must not end the others' server
            log.exception("a request failed")
            return 500, Body(error_body(f"inference failed: {type(error).__name__}; see the log of the daemon"))

    def _checked_forward(self, images: Tensor) -> Tensor:
        outputs = self.forward(images)
        if outputs.shape != (len(images), *self._task.raw_shape):
            raise self._unfit(f"outputs of shape {list(outputs.shape)}")
        return outputs

    def _unfit(self, outputs: str) -> GateError:
        return GateError(
            f"generation {self._version} of {self._name} gives {outputs} on a first pass; it is not put in service"
        )


def serve(stream: BufferedIOBase, served: ServedModel) -> None:
    """Answer frames one after another until the supervisor closes the stream."""
    while (frame := frames.read_blocking(stream)) is not None:
        header, body = frame
        start = time.monotonic()
        status, answer = served.answer(Body(body, header["json_bytes"]))
        told = {"status": status, "seconds": time.monotonic() - start, "json_bytes": answer.json_bytes}
        frames.write_blocking(stream, {"id": header["id"], **told}, answer.content)


def main(arguments: list[str]) -> int:
    """Load, warm up, say so, serve."""
    parser = argparse.ArgumentParser(prog="service.generation_child")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--generation", required=True)
    parser.add_argument("--nice", type=int, default=0, help="niceness of loading, beyond that of serving")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    with socket.socket(fileno=options.socket_fd) as connection, connection.makefile("rwb") as stream:
        try:
            served, ready = give_way(lambda: _load(options.artifact, options.model, options.generation), options.nice)
            served.warm()  # once more: the threads that compute belong to the thread that asks for it
        except EdgedError as error:
            frames.write_blocking(stream, {"kind": "failed", "code": error.code, "message": str(error)})
            return error.exit_code
        frames.write_blocking(stream, {"kind": "ready", **ready})
        try:
            serve(stream, served)
        except (BrokenPipeError, ConnectionResetError, frames.FrameError):
            return 0  # the supervisor went away
    return 0


def _load(directory: Path, model: str, version: str) -> tuple[ServedModel, dict[str, Any]]:
    start = time.monotonic()
    served = ServedModel(read_artifact(directory), model, version)
    loaded = time.monotonic()
    served.warm()
    seconds = {"load_seconds": loaded - start, "warm_seconds": time.monotonic() - loaded}
    return served, {"metadata": served.metadata, **seconds}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

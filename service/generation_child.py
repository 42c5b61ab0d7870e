"""`python -m service.generation_child ...`: holds one published model in memory and answers over a socket."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edged.artifacts.reader import Artifact, read_artifact
from edged.calibration.colours import BINS, Histograms
from edged.errors import EdgedError, GateError
from service import frames
from service.binary import Body, RequestError
from service.channel import OBSERVED
from service.children import die_with_parent
from service.observation import Observation
from service.protocol import Request, error_body, metadata, parse_request
from service.responses import format_response
from service.tasks import task_of

log = logging.getLogger(__name__)

_WARM_PASSES = 3  # the first ones choose kernels and allocate


class NotFiniteError(Exception):
    """The network's outputs hold NaN or infinity."""


@dataclass(frozen=True)
class Answer:
    """The response to a request.

    Attributes:
        status: HTTP status.
        body: HTTP body.
        request: What was asked; None if it could not be answered.
    """

    status: int
    body: Body
    request: Request | None = None


class ServedModel:
    """A published model in memory.

    Args:
        artifact: The model.
        model: Its name.
        version: Its generation.

    Attributes:
        input: What it reads.
        colours: Of its calibration images [axes, BINS]; None in an artifact of an edged that did not look at them.
    """

    def __init__(self, artifact: Artifact, model: str, version: str) -> None:
        self._name = model
        self._version = version
        self.input = artifact.input
        self.colours = _colours(artifact)
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
        shape = (1, self.input.channels, self.input.size, self.input.size)
        generator = torch.Generator().manual_seed(0)
        for _ in range(_WARM_PASSES):
            try:
                self._task.answer(Request(torch.randn(shape, generator=generator)), self._checked_forward)
            except NotFiniteError:
                raise self._unfit("outputs with NaN or infinity") from None

    def answer(self, body: Body) -> Answer:
        """The response to one inference request."""
        try:
            request = parse_request(body, self.input, self._outputs)
            outputs = self._task.answer(request, self.forward)
            response = format_response(outputs, self._name, self._version, request.id, request.binary)
            return Answer(200, response, request)
        except RequestError as error:
            return Answer(400, Body(error_body(str(error))))
        except NotFiniteError as error:
            return Answer(500, Body(error_body(str(error))))
        except Exception as error:  # one request must not end the others' server
            log.exception("a request failed")
            why = f"inference failed: {type(error).__name__}; see the log of the daemon"
            return Answer(500, Body(error_body(why)))

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
    writing = threading.Lock()

    def write(header: dict[str, Any], body: bytes = b"") -> None:
        with writing:
            frames.write_blocking(stream, header, body)

    observation = Observation(served.input, served.colours, lambda told: write({"kind": OBSERVED, **told}))
    while (frame := frames.read_blocking(stream)) is not None:
        header, body = frame
        start = time.monotonic()
        answer = served.answer(Body(body, header["json_bytes"]))
        told = {"status": answer.status, "seconds": time.monotonic() - start, "json_bytes": answer.body.json_bytes}
        write({"id": header["id"], **told}, answer.body.content)
        if "observe" in header and answer.request is not None:
            observation.offer(header["observe"], answer.request)


def main(arguments: list[str]) -> int:
    """Load, warm up, say so, serve."""
    parser = argparse.ArgumentParser(prog="service.generation_child")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--generation", required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    with socket.socket(fileno=options.socket_fd) as connection, connection.makefile("rwb") as stream:
        try:
            served, ready = _load(options.artifact, options.model, options.generation)
        except EdgedError as error:
            frames.write_blocking(stream, {"kind": "failed", "code": error.code, "message": str(error)})
            return error.exit_code
        frames.write_blocking(stream, {"kind": "ready", **ready})
        try:
            serve(stream, served)
        except (BrokenPipeError, ConnectionResetError, frames.FrameError):
            return 0  # the supervisor went away
    return 0


def _colours(artifact: Artifact) -> Histograms | None:
    try:
        colours = np.array(artifact.report["calibration_colours"], np.float64)
    except (KeyError, ValueError, TypeError):
        return None
    return colours if colours.shape in ((1, BINS), (3, BINS)) else None


def _load(directory: Path, model: str, version: str) -> tuple[ServedModel, dict[str, Any]]:
    start = time.monotonic()
    served = ServedModel(read_artifact(directory), model, version)
    loaded = time.monotonic()
    served.warm()
    seconds = {"load_seconds": loaded - start, "warm_seconds": time.monotonic() - loaded}
    return served, {"metadata": served.metadata, **seconds}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

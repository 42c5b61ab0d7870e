"""A published model in memory: makes answers of requests. Knows nothing of the process around it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from edged.artifacts.reader import Artifact
from edged.artifacts.warmup import TOLERANCE, Comparison, Warmup
from edged.calibration.color_histograms import BINS, Histograms
from edged.errors import GateError
from service.inference.batch_queue import warm_sizes
from service.inference.binary import Body, RequestError
from service.inference.requests import Request, error_body, metadata, parse_request
from service.inference.responses import Answer, OutputTensor, format_response, read_outputs
from service.inference.tasks import task_of

T = TypeVar("T")

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
        max_batch: Most images of several requests that are computed together.

    Attributes:
        input: What it reads.
        color_histogram: Of its calibration images [axes, BINS]; None in an artifact without one.
    """

    def __init__(self, artifact: Artifact, model: str, version: str, max_batch: int = 1) -> None:
        self._name = model
        self._max_batch = max_batch
        self._version = version
        self.input = artifact.input
        self.color_histogram = _color_histogram(artifact)
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
        return _finite(self._run(images))

    def warm(self, warmup: Warmup | None = None) -> Comparison | None:
        """Answer requests for calibration images one by one, all the way from the network to the outputs.

        Args:
            warmup: The images; None for noise, for artifacts that were written without.

        Returns:
            How close the network's outputs are to those of the network that was evaluated; None where nobody knows.

        Raises:
            GateError: The outputs are not what they must be.
        """
        images = self._noise() if warmup is None else warmup.images(self.input)
        outputs: list[Tensor] = []

        def forward(image: Tensor) -> Tensor:
            outputs.append(self._checked_forward(image))
            return outputs[-1]

        for number in range(max(_WARM_PASSES, len(images))):
            try:
                self._task.answer(Request(images[number % len(images)][None]), forward)
            except NotFiniteError:
                raise self._unfit("outputs with NaN or infinity") from None
            del outputs[len(images) :]
        return None if warmup is None else self._compare(warmup, outputs)

    def warm_batches(self) -> None:
        """Likewise of several requests together, which is slow the first time and takes the most memory.

        Raises:
            GateError: The output is not what it must be.
        """
        for size in warm_sizes(self._max_batch)[1:]:
            shape = (size, self.input.channels, self.input.size, self.input.size)
            images = torch.randn(shape, generator=torch.Generator().manual_seed(size))
            try:
                self._task.answer(Request(images), _Computed(self._checked_forward(images)))
            except NotFiniteError:
                raise self._unfit(f"outputs with NaN or infinity in a batch of {size}") from None

    def answer(self, body: Body, rival: Body | None = None) -> Answer:
        """The response to one inference request; the arguments are those of `prepare`."""
        request = self.prepare(body, rival)
        return request if isinstance(request, Answer) else self.answer_together([request])[0]

    def prepare(self, body: Body, rival: Body | None = None) -> Request | Answer:
        """A request that can be computed, or what is answered because it cannot.

        Args:
            body: Of the HTTP request.
            rival: What another generation answered: how far the two agree is asked for then, not the outputs.
        """

        def read() -> Request:
            request = parse_request(body, self.input, self._outputs)
            self._task.check(request)
            return request if rival is None else replace(request, outputs=(), rival=rival)

        return _guarded(read)

    def answer_together(self, requests: Sequence[Request]) -> list[Answer]:
        """The response to each of some requests, from one forward pass over all their images.

        What is wrong with one of them is told to that one only.
        """
        if len(requests) == 1:
            return [self._answer(requests[0], self.forward)]
        try:
            outputs = self._run(torch.cat([request.images for request in requests]))
        except Exception:  # of memory, say: what is too much together may be possible alone
            log.exception("a batch of %d requests failed; each is computed by itself", len(requests))
            return [self._answer(request, self.forward) for request in requests]
        parts = outputs.split_with_sizes([len(request.images) for request in requests])
        return [self._answer(*each) for each in zip(requests, map(_Computed, parts), strict=True)]

    def _answer(self, request: Request, forward: Callable[[Tensor], Tensor]) -> Answer:
        def compute() -> Answer:
            outputs = self._task.answer(request, forward)
            if request.rival is not None:
                return Answer(200, self._agreement(outputs, request.rival))
            body = format_response(outputs, self._name, self._version, request.id, request.binary)
            return Answer(200, body)

        return _guarded(compute)

    def _agreement(self, outputs: Sequence[OutputTensor], rival: Body) -> Body:
        ours = read_outputs(format_response(outputs, self._name, self._version, None))
        agreed, compared = self._task.agree(ours, read_outputs(rival))
        return Body(json.dumps({"agreed": agreed, "compared": compared, "unit": self._task.unit}).encode())

    def _run(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            outputs: Tensor = self._network(images.contiguous(memory_format=torch.channels_last)).float()
        return outputs

    def _noise(self) -> Tensor:
        shape = (1, self.input.channels, self.input.size, self.input.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def _compare(self, warmup: Warmup, outputs: list[Tensor]) -> Comparison:
        compared = warmup.compare(outputs)
        if not compared.close:
            raise GateError(
                f"generation {self._version} of {self._name} gives other outputs for its warm-up images than the"
                f" network that was evaluated: they differ by {compared.relative_error:.3g} of their norm,"
                f" {TOLERANCE:g} is allowed (sha256 {compared.digest[:16]}..., recorded {compared.recorded[:16]}...);"
                " its files are damaged, quantize the checkpoint again"
            )
        return compared

    def _checked_forward(self, images: Tensor) -> Tensor:
        outputs = self.forward(images)
        if outputs.shape != (len(images), *self._task.raw_shape):
            raise self._unfit(f"outputs of shape {list(outputs.shape)}")
        return outputs

    def _unfit(self, outputs: str) -> GateError:
        return GateError(
            f"generation {self._version} of {self._name} gives {outputs} on a first pass; it is not put in service"
        )


def _color_histogram(artifact: Artifact) -> Histograms | None:
    try:
        histogram = np.array(artifact.report["calibration_colours"], np.float64)
    except (KeyError, ValueError, TypeError):
        return None
    return histogram if histogram.shape in ((1, BINS), (3, BINS)) else None


class _Computed:
    """Stands for the network where its outputs are there already: hands them out in order.

    Args:
        outputs: Float32 [b, ...], not all of them finite perhaps.
    """

    def __init__(self, outputs: Tensor) -> None:
        self._outputs = outputs
        self._next = 0

    def __call__(self, images: Tensor) -> Tensor:
        start, self._next = self._next, self._next + len(images)
        return _finite(self._outputs[start : self._next])


def _finite(outputs: Tensor) -> Tensor:
    if not np.isfinite(outputs.numpy()).all():  # torch takes several times as long
        raise NotFiniteError("the model's output holds NaN or infinity for this input")
    return outputs


def _guarded(produce: Callable[[], T]) -> T | Answer:
    """What `produce` returns, or the answer to its error."""
    try:
        return produce()
    except RequestError as error:
        return Answer(400, Body(error_body(str(error))))
    except NotFiniteError as error:
        return Answer(500, Body(error_body(str(error))))
    except Exception as error:  # one request must not end the others' server
        log.exception("a request failed")
        return Answer(500, Body(error_body(f"inference failed: {type(error).__name__}; see the log of the daemon")))

"""A published model in memory, which computes replies to requests. Independent of the process around it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edged.artifacts.reader import Artifact
from edged.artifacts.warmup import OTHER_ENGINE_TOLERANCE, Comparison, Warmup
from edged.calibration.color_histograms import BINS, Histograms
from edged.errors import GateError, MemoryLimitError
from edged.execution.executors import HALF_ENGINES, HALF_TOLERANCE, Executor
from service.inference.accept import PICTURES
from service.inference.batch_queue import warm_sizes
from service.inference.forms import Known, read_form
from service.inference.inputs import check_plausible
from service.inference.requests import Request, error_body, metadata, parse_request
from service.inference.responses import OutputTensor, format_response, read_outputs
from service.inference.tasks import task_of
from service.ipc.messages import Body, Form, Reply, RequestError

T = TypeVar("T")
Floats = npt.NDArray[np.float32]

log = logging.getLogger(__name__)

_WARM_PASSES = 3  # the first passes select kernels and allocate memory


class NotFiniteError(Exception):
    """The network's outputs contain NaN or infinity."""


class ServedModel:
    """A published model in memory.

    Args:
        artifact: Artifact of the model.
        executor: Engine with its network.
        model: Model name.
        version: Number of its generation.
        max_batch: Largest number of images that are computed together.
        labels: Names of the classes that the configuration sets; None for those of the artifact.

    Attributes:
        input: Input of the model.
        color_histogram: Color histograms of its calibration images [axes, BINS]; None if its artifact has none.
        metadata: Description of the model, as the protocol has it.
        passes: Number of images and nanoseconds of each forward pass since somebody emptied the list.
    """

    def __init__(
        self,
        artifact: Artifact,
        executor: Executor,
        model: str,
        version: str,
        max_batch: int = 1,
        labels: Sequence[str] | None = None,
    ) -> None:
        self._name = model
        self._max_batch = max_batch
        self._version = version
        self.input = artifact.input
        self.color_histogram = _color_histogram(artifact)
        self._in_float = artifact.activations is None
        self._task = task_of(artifact, labels)
        outputs = [output["name"] for output in self._task.described]
        self._known = Known(outputs, self._task.parameters, self._task.draws)
        self._executor = executor
        self.passes: list[tuple[int, int]] = []
        self.metadata = metadata(model, version, executor.name, artifact.input, self._task.described)

    def forward(self, images: Floats) -> Floats:
        """Compute raw outputs float32 [b, ...] of images [b, channels, size, size].

        Raises:
            NotFiniteError: The outputs contain NaN or infinity.
        """
        return _finite(self._run(images))

    def warm(self, warmup: Warmup | None = None) -> Comparison | None:
        """Compute calibration images one by one, from the network to the outputs of a reply.

        Args:
            warmup: Images and their recorded outputs; None to use noise, for artifacts that have no such images.

        Returns:
            Comparison of the network's outputs with those of the network that was evaluated; None without `warmup`.

        Raises:
            GateError: The outputs have the wrong shape, are not finite, or differ from those that were evaluated.
        """
        shape = (1, self.input.channels, self.input.size, self.input.size)
        images = _noise(shape, 0) if warmup is None else warmup.images(self.input)
        outputs: list[Floats] = []

        def forward(image: Floats) -> Floats:
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
        """Compute batches of several sizes, which are slow the first time and take the most memory.

        Raises:
            GateError: The outputs have the wrong shape or are not finite.
        """
        for size in warm_sizes(self._max_batch)[1:]:
            shape = (size, self.input.channels, self.input.size, self.input.size)
            images = _noise(shape, size)
            try:
                self._task.answer(Request(images), _Computed(self._checked_forward(images)))
            except NotFiniteError:
                raise self._unfit(f"outputs with NaN or infinity in a batch of {size}") from None

    def prepare(
        self,
        body: Body,
        reference: Body | None = None,
        form: Form | None = None,
        read_json: Callable[[], dict[str, Any]] | None = None,
    ) -> Request | Reply:
        """Parse a request; return the error reply if it cannot be computed.

        Args:
            body: Body of the HTTP request.
            reference: Reply of another generation: the reply then states how far the two agree, and has no outputs.
                None for a reply with the outputs.
            form: What the HTTP request says next to its body; None for nothing.
            read_json: Returns the JSON of the body, as another process has parsed it; None to parse it here.
        """

        def read() -> Request:
            parsed = None if read_json is None else read_json()
            if form is None:
                request = parse_request(body, self.input, self._known.outputs, parsed)
            else:
                request = read_form(body, form, self.input, self._known, parsed)
            self._task.check(request)
            return request if reference is None else replace(request, outputs=(), reference=reference)

        return _guarded(read)

    def answer_together(self, requests: Sequence[Request]) -> list[Reply]:
        """Compute the replies to some requests in one forward pass over all their images.

        An error in one of the requests affects only its own reply.
        """
        if len(requests) == 1:
            return [self._answer(requests[0], self.forward)]
        try:
            outputs = self._run(np.concatenate([request.images for request in requests]))
        except Exception:  # out of memory, for example: each request alone may still fit
            log.exception("a batch of %d requests failed; computing each of them alone", len(requests))
            return [self._answer(request, self.forward) for request in requests]
        parts = np.split(outputs, np.cumsum([len(request.images) for request in requests])[:-1])
        return [self._answer(*each) for each in zip(requests, map(_Computed, parts), strict=True)]

    def _run(self, images: Floats) -> Floats:
        """Run the engine, and note how long it took."""
        start = time.monotonic_ns()
        outputs = self._executor.run(images)
        self.passes.append((len(images), time.monotonic_ns() - start))
        return outputs

    def _answer(self, request: Request, forward: Callable[[Floats], Floats]) -> Reply:
        def compute() -> Reply:
            try:
                outputs = self._task.answer(request, forward)
            except NotFiniteError:
                check_plausible(request.images, self.input)  # or the request is at fault, and not the generation
                raise
            if request.reference is not None:
                return Reply(200, self._agreement(outputs, request.reference))
            if request.picture is not None:
                return Reply(200, _picture(request.files[0], outputs, request.picture))
            body = format_response(outputs, self._name, self._version, request.id, request.binary)
            return Reply(200, body)

        return _guarded(compute)

    def _agreement(self, outputs: Sequence[OutputTensor], reference: Body) -> Body:
        ours = read_outputs(format_response(outputs, self._name, self._version, None))
        agreed, compared = self._task.agree(ours, read_outputs(reference))
        return Body(json.dumps({"agreed": agreed, "compared": compared, "unit": self._task.unit}).encode())

    def _compare(self, warmup: Warmup, outputs: list[Floats]) -> Comparison:
        compared = warmup.compare(outputs)
        tolerance = self._executor.tolerance
        if warmup.engine not in (None, self._executor.name) and not self._in_float:
            tolerance = OTHER_ENGINE_TOLERANCE
        elif warmup.engine in HALF_ENGINES:
            tolerance = max(tolerance, HALF_TOLERANCE)
        if not compared.within(tolerance):
            raise GateError(
                f"generation {self._version} of {self._name} gives other outputs for its warm-up images than the"
                f" network that was evaluated: they differ by {compared.relative_error:.3g} of their norm,"
                f" {tolerance:g} is allowed (sha256 {compared.digest[:16]}..., recorded {compared.recorded[:16]}...);"
                " its files are damaged, quantize the checkpoint again"
            )
        return compared

    def _checked_forward(self, images: Floats) -> Floats:
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


def _picture(file: bytes | memoryview, outputs: Sequence[OutputTensor], format_: str) -> Body:
    from service.inference.pictures import draw_boxes  # fonts, for the few generations that draw

    return Body(draw_boxes(bytes(file), outputs, format_), media_type=PICTURES[format_])


class _Computed:
    """Replaces the network where its outputs are computed already: returns them in order.

    Args:
        outputs: Outputs float32 [b, ...]; some may not be finite.
    """

    def __init__(self, outputs: Floats) -> None:
        self._outputs = outputs
        self._next = 0

    def __call__(self, images: Floats) -> Floats:
        start, self._next = self._next, self._next + len(images)
        return _finite(self._outputs[start : self._next])


def _noise(shape: tuple[int, ...], seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _finite(outputs: Floats) -> Floats:
    if not np.isfinite(outputs).all():
        raise NotFiniteError("the model's output holds NaN or infinity for this input")
    return outputs


def _guarded(produce: Callable[[], T]) -> T | Reply:
    """Return the result of `produce`, or the reply for its error."""
    try:
        return produce()
    except RequestError as error:
        return Reply(error.status, Body(error_body(str(error))))
    except NotFiniteError as error:
        return Reply(500, Body(error_body(str(error))))
    except MemoryLimitError as error:
        log.warning("a request failed: %s", error)
        return Reply(503, Body(error_body(str(error))))
    except Exception as error:  # an error in one request must not stop the server
        log.exception("a request failed")
        return Reply(500, Body(error_body(f"inference failed: {type(error).__name__}; see the log of the daemon")))

"""The serve loop of a generation: reads requests, computes them one by one or in batches, and replies."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any, NamedTuple

from service.inference.batch_queue import BatchQueue
from service.inference.binary import bodies_of
from service.inference.json_reader import IDLE_S, JsonReader, is_large
from service.inference.observation import observing
from service.ipc import frames
from service.ipc.frames import PARKED, Outbox
from service.ipc.messages import Body, Form, Pass, Reply, Work
from service.ipc.options import Batching
from service.ipc.shared_memory import Inbox, ReceivedMemory

if TYPE_CHECKING:
    from service.inference.model import ServedModel
    from service.inference.requests import Request


class _Received(NamedTuple):
    header: dict[str, Any]
    body: Body
    reference: Body | None
    arrived_ns: int  # by time.monotonic_ns()

    @property
    def form(self) -> Form | None:
        return Form(*self.header["form"]) if "form" in self.header else None


class _Prepared(NamedTuple):
    header: dict[str, Any]
    request: Request
    arrived_ns: int  # by time.monotonic_ns()
    prepared_ns: int

    @property
    def input_ns(self) -> int:
        """Nanoseconds that were taken to prepare it."""
        return self.prepared_ns - self.arrived_ns


class Server:
    """Serves one model over its stream.

    Without batching, one thread does everything, a request at a time: a handoff between threads would cost each of
    them a wake-up. With batching there are two threads: one reads and prepares requests while the other computes what
    waits, and replies. The same holds from the first large JSON on: a third thread has another process parse it, while
    these two serve other requests.

    Args:
        stream: Stream to and from the supervisor.
        served: The model.
        batching: How requests are batched.
        memory: Memory shared with the supervisor; None if all bodies come through the stream.
    """

    def __init__(
        self, stream: BufferedIOBase, served: ServedModel, batching: Batching, memory: ReceivedMemory | None = None
    ) -> None:
        self._inbox = Inbox(stream, memory)
        self._outbox = Outbox(stream)
        self._served = served
        self._observation = observing(served, self._outbox)
        self._batching = batching
        self._large: queue.SimpleQueue[_Received] = queue.SimpleQueue()  # whose JSON another process parses

    def run(self) -> None:
        """Reply requests until the supervisor closes the stream.

        Raises:
            OSError: The supervisor closed the stream in the middle of a reply.
            FrameError: A frame is damaged or cut short, and no second thread reads: without batching, before the first
                large JSON.
        """
        if self._batching.max_batch > 1 or self._run_inline():
            self._run_threaded()

    def _run_inline(self) -> bool:
        """Answer requests in this thread; return true once one has large JSON, false at the end of the stream."""
        while (received := self._receive()) is not None:
            if is_large(received.body):
                self._park(received)
                return True
            if (prepared := self._prepare(received)) is not None:
                self._compute([prepared], images=0)
        return False

    def _run_threaded(self) -> None:
        waiting: BatchQueue[_Prepared] = BatchQueue(self._batching)
        for target, name in ((self._read_into, "prepare"), (self._parse_into, "parse")):
            threading.Thread(target=target, args=(waiting,), name=name, daemon=True).start()
        batched = self._batching.max_batch > 1
        while batch := waiting.take():
            self._compute(batch, sum(len(prepared.request.images) for prepared in batch) if batched else 0)

    def _read_into(self, waiting: BatchQueue[_Prepared]) -> None:
        try:
            while (received := self._receive()) is not None:
                if is_large(received.body):
                    self._park(received)
                elif (prepared := self._prepare(received)) is not None:
                    self._put(waiting, prepared)
        except (OSError, frames.FrameError):
            pass  # the supervisor closed the stream
        finally:
            waiting.close()

    def _parse_into(self, waiting: BatchQueue[_Prepared]) -> None:
        """Have another process parse large JSON, one after the other."""
        reader = JsonReader()
        while True:
            try:
                received = self._large.get(timeout=IDLE_S)
            except queue.Empty:
                reader.close()
                received = self._large.get()
            text, _ = received.body.parts()
            try:
                if (prepared := self._prepare(received, partial(reader.read, text))) is not None:
                    self._put(waiting, prepared)
            except OSError:
                return  # the supervisor closed the stream

    def _put(self, waiting: BatchQueue[_Prepared], prepared: _Prepared) -> None:
        exclusive = prepared.header.get("alone")
        images = self._batching.max_batch if exclusive else len(prepared.request.images)
        waiting.put(prepared, images, prepared.arrived_ns / 1e9)

    def _park(self, received: _Received) -> None:
        """Leave a request to the thread that has JSON parsed, and tell the supervisor to send others meanwhile."""
        self._large.put(received)
        self._outbox.send({"kind": PARKED, "id": received.header["id"]})

    def _receive(self) -> _Received | None:
        """Receive a request; return None at the end of the stream."""
        if (frame := self._inbox.read()) is None:
            return None
        return _Received(frame[0], *bodies_of(*frame), time.monotonic_ns())

    def _prepare(self, received: _Received, read_json: Callable[[], dict[str, Any]] | None = None) -> _Prepared | None:
        """Parse and decode a request. If it cannot be computed, reply at once and return None."""
        header = received.header
        request = self._served.prepare(received.body, received.reference, received.form, read_json)
        prepared_ns = time.monotonic_ns()
        if isinstance(request, Reply):
            self._reply(header["id"], request, (prepared_ns - received.arrived_ns) / 1e9)
            return None
        return _Prepared(header, request, received.arrived_ns, prepared_ns)

    def _compute(self, batch: list[_Prepared], images: int) -> None:
        """Compute requests in one forward pass and reply to each.

        Args:
            batch: The requests.
            images: Number of their images, for the metric of batches; 0 if nothing is batched.
        """
        start_ns = time.monotonic_ns()
        self._served.passes.clear()
        answers = self._served.answer_together([prepared.request for prepared in batch])
        spent_ns = time.monotonic_ns() - start_ns
        works = _works(batch, self._served.passes, start_ns, spent_ns)
        for prepared, answer, work in zip(batch, answers, works, strict=True):
            self._reply(prepared.header["id"], answer, (prepared.input_ns + spent_ns) / 1e9, images, work)
            images = 0  # each forward pass is reported once
            if "observe" in prepared.header and answer.status == HTTPStatus.OK:
                self._observation.offer(prepared.header["observe"], prepared.request)

    def _reply(self, identity: int, answer: Reply, seconds: float, images: int = 0, work: Work | None = None) -> None:
        header: dict[str, Any] = {
            "status": answer.status,
            "seconds": seconds,
            "json_bytes": answer.body.json_bytes,
            "images": images,
        }
        if answer.body.media_type is not None:
            header["media_type"] = answer.body.media_type
        self._outbox.send({"id": identity, **header, "work": work}, answer.body.content)


def _works(batch: list[_Prepared], ran: list[tuple[int, int]], start_ns: int, spent_ns: int) -> list[Work]:
    """Return what was done for each request of a batch.

    Args:
        batch: The requests.
        ran: Number of images and nanoseconds of each forward pass.
        start_ns: When computing began, by time.monotonic_ns().
        spent_ns: Nanoseconds for all passes and all outputs.
    """
    infer_ns = sum(ns for _, ns in ran)
    output_ns = spent_ns - infer_ns
    shared = (sum(prepared.input_ns for prepared in batch) // max(1, len(ran)), output_ns // max(1, len(ran)))
    passes = tuple(Pass(images, shared[0], ns, shared[1]) for images, ns in ran)
    works = []
    for prepared in batch:
        waited_ns = start_ns - prepared.prepared_ns
        count = len(prepared.request.images)
        times = (prepared.arrived_ns, waited_ns, prepared.input_ns, infer_ns, output_ns)
        works.append(Work(count, *times, passes))
        passes = ()  # each is reported once
    return works

"""The serve loop of a generation: reads requests, computes them one by one or in batches, and replies."""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from io import BufferedIOBase
from typing import TYPE_CHECKING, Any, NamedTuple

from service.inference.batch_queue import BatchQueue
from service.inference.binary import bodies_of
from service.inference.observation import observing
from service.ipc import frames
from service.ipc.frames import Outbox
from service.ipc.messages import Form, Pass, Reply, Work
from service.ipc.options import Batching
from service.ipc.shared_memory import Inbox, ReceivedMemory

if TYPE_CHECKING:
    from service.inference.model import ServedModel
    from service.inference.requests import Request


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
    waits, and replies.

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

    def run(self) -> None:
        """Reply requests until the supervisor closes the stream.

        Raises:
            OSError: The supervisor closed the stream in the middle of a reply.
            FrameError: A frame is damaged or cut short. Only without batching.
        """
        if self._batching.max_batch > 1:
            self._run_batched()
        else:
            self._run_inline()

    def _run_inline(self) -> None:
        while (frame := self._inbox.read()) is not None:
            if (prepared := self._prepare(*frame)) is not None:
                self._compute([prepared], images=0)

    def _run_batched(self) -> None:
        waiting: BatchQueue[_Prepared] = BatchQueue(self._batching)
        threading.Thread(target=self._read_into, args=(waiting,), name="prepare", daemon=True).start()
        while batch := waiting.take():
            self._compute(batch, sum(len(prepared.request.images) for prepared in batch))

    def _read_into(self, waiting: BatchQueue[_Prepared]) -> None:
        try:
            while (frame := self._inbox.read()) is not None:
                if (prepared := self._prepare(*frame)) is not None:
                    exclusive = prepared.header.get("alone")
                    images = self._batching.max_batch if exclusive else len(prepared.request.images)
                    waiting.put(prepared, images, prepared.arrived_ns / 1e9)
        except (OSError, frames.FrameError):
            pass  # the supervisor closed the stream
        finally:
            waiting.close()

    def _prepare(self, header: dict[str, Any], content: bytes | memoryview) -> _Prepared | None:
        """Parse and decode a request. If it cannot be computed, reply at once and return None."""
        arrived_ns = time.monotonic_ns()
        form = None if "form" not in header else Form(*header["form"])
        request = self._served.prepare(*bodies_of(header, content), form)
        prepared_ns = time.monotonic_ns()
        if isinstance(request, Reply):
            self._reply(header["id"], request, (prepared_ns - arrived_ns) / 1e9)
            return None
        return _Prepared(header, request, arrived_ns, prepared_ns)

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

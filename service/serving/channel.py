"""The channel to one generation: a bounded queue of requests with deadlines, answered in any order. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, NamedTuple, Union, cast

from edged.errors import EdgedError
from service.ipc import frames
from service.ipc.frames import OBSERVED, PARKED
from service.ipc.messages import Body, Form, Pass, Reply, Work
from service.ipc.shared_memory import PLACE, BodyMemory, RequestBody, StartedRecord, StoredBody
from service.system.timeouts import within

log = logging.getLogger(__name__)

# Batches sent to the child at once: while it computes the first, the second is already in its socket.
_AT_THE_CHILD = 2


class ServingError(EdgedError):
    """A request cannot be answered now."""

    code = "serving"
    is_failure: ClassVar[bool] = True  # whether the server is at fault


class NotStartedError(ServingError):
    """The child exited before it started the request, so another process may answer it."""


class BusyError(ServingError):
    """The queue is full."""

    code = "busy"
    is_failure = False


class DeadlineError(ServingError):
    """The deadline passed first."""

    code = "deadline"


# Sampling directive: what the child does with a request after its reply, see service.serving.sampling.
Order = Mapping[str, Any]


# Called with the outcome of a request: the reply, or why there is none.
Done = Callable[[Union[Reply, ServingError]], None]  # noqa: UP007 - evaluated at runtime, by Python 3.10 too


class Question(NamedTuple):
    """A request to a generation.

    Attributes:
        body: Body of the HTTP request.
        json_bytes: Length of the JSON in the body in bytes; None if the body is all JSON.
        form: What the HTTP request says next to its body; None for nothing.
        observe: Sampling directive; None if the request is not sampled.
    """

    body: RequestBody
    json_bytes: int | None = None
    form: Form | None = None
    observe: Order | None = None


# Compared by identity. deque.remove puts the repr into its error, which takes 50 ms for a body of 600 kB.
@dataclass(eq=False, repr=False)
class _Pending:
    id: int
    body: RequestBody
    options: dict[str, Any]  # entries of the frame's header
    deadline_s: float
    due: float  # by time.monotonic()
    done: Done | None  # None once it was called, or if nobody waits any more
    sent_at: float = field(default=0.0)
    stored: StoredBody | None = field(default=None)  # in the memory shared with the child; held until it replies

    def release(self) -> None:
        """Release the body, which the child does not read any more."""
        if self.stored is not None:
            self.stored.release()
            self.stored = None


@dataclass(frozen=True)
class ChannelOptions:
    """Options of a channel.

    Attributes:
        queue: Requests that may wait or run at once.
        max_batch: Most images that the child computes in one forward pass.
        on_batch: Called with the number of images of each batch.
        on_observed: Called with the observation of a sampled request, after its reply.
    """

    queue: int
    max_batch: int = 1
    on_batch: Callable[[int], None] = lambda _: None
    on_observed: Callable[[dict[str, Any]], None] = lambda _: None


class Channel(asyncio.Protocol):
    """One socket to one child.

    It is the protocol of its own connection: a reply reaches its request in the turn of the event loop that reads it.

    Args:
        model: Model name, for messages.
        options: Sizes of the queue and of batches, and who receives events.
        memory: Memory shared with all children, for the bodies of requests; None to send them through the socket.
        started: What the child started last; None if that is not known.

    Attributes:
        inflight: Number of requests without a reply.
    """

    def __init__(
        self,
        model: str,
        options: ChannelOptions,
        memory: BodyMemory | None = None,
        started: StartedRecord | None = None,
    ) -> None:
        self._model = model
        self._options = options
        self._at_the_child = _AT_THE_CHILD * options.max_batch
        self._memory = memory
        self._started = started
        self._transport: asyncio.Transport | None = None
        self._decoder = frames.Decoder()
        self._greeting: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ids = itertools.count(1)
        self._waiting: deque[_Pending] = deque()
        self._sent: dict[int, _Pending] = {}
        self._parked: set[int] = set()  # ids of those of `_sent` that keep the child from nothing
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._replied_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None  # for the request that is due first
        self.inflight = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection to the child."""
        self._transport = cast("asyncio.Transport", transport)  # it is one of a stream

    def data_received(self, data: bytes) -> None:
        """Dispatch what the child sent."""
        try:
            for header, body in self._decoder.feed(data):
                self._dispatch(header, body)
        except frames.FrameError as error:
            self._fail(error)
        except Exception as error:  # a header without its keys
            self._fail(frames.FrameError(f"a frame cannot be dispatched: {error!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the child has exited, or that its end of the connection was closed."""
        if error is None and self._decoder.is_within_frame and not self._closed:
            error = frames.FrameError("stream ends within a frame")
        if isinstance(error, ConnectionResetError) and not self._greeting.done():
            error = None  # the child exited with unread data
        self._fail(error)

    @property
    def stalled_s(self) -> float:
        """How long the child has been silent while a request is with it."""
        now = time.monotonic()
        oldest = min((pending.sent_at for pending in self._sent.values()), default=now)
        return now - max(oldest, self._replied_at)  # several may be sent at once: while it replies, it does not hang

    async def receive(self) -> dict[str, Any] | None:
        """Receive the header that precedes all replies; return None if the child exited.

        Raises:
            FrameError: The frame is damaged.
        """
        return await self._greeting

    async def request(
        self,
        body: RequestBody,
        deadline_s: float,
        json_bytes: int | None = None,
        *,
        rival: Reply | None = None,
        observe: Order | None = None,
        alone: bool = False,
        form: Form | None = None,
    ) -> Reply:
        """Have the child answer one request.

        Args:
            body: Body of the HTTP request.
            deadline_s: Seconds that the reply may take.
            json_bytes: Length of the JSON in the body in bytes; None if the body is all JSON.
            rival: Reference reply of another generation: the reply then states how far the two agree, see
                `service.inference.model`. None for a reply with the outputs.
            observe: Sampling directive; None if the request is not sampled.
            alone: Whether the request is exclusive: computed with no other one, and not counted against the queue.
            form: What the HTTP request says next to its body; None for nothing.

        Raises:
            BusyError: The queue is full.
            DeadlineError: There was no reply within `deadline_s`.
            NotStartedError: The child exited before it started the request.
            ServingError: The child exited before it replied.
        """
        self._check_open(alone=alone)
        options = _options_of(json_bytes, form, observe)
        if rival is not None:
            options["rival"] = {"request_bytes": len(body), "json_bytes": rival.body.json_bytes}
            body = bytes(body if isinstance(body, bytes) else body.view) + bytes(rival.body.content)
        if alone:
            options["alone"] = True
        reply: asyncio.Future[Reply] = self._loop.create_future()
        pending = self._start(body, options, deadline_s, partial(_set_outcome, reply))
        try:
            return await reply
        finally:
            if reply.done() and not reply.cancelled():
                reply.exception()  # it failed at the moment of a cancellation: asyncio would log that
            self._forget(pending)

    def begin(self, question: Question, deadline_s: float, done: Done) -> None:
        """Have the child answer one request as `request` does, without a task that waits for it.

        Args:
            question: The request.
            deadline_s: Seconds that the reply may take.
            done: Called with the outcome, in the turn of the event loop in which it is known.

        Raises:
            BusyError, NotStartedError: See `request`; `done` is not called then.
        """
        self._check_open(alone=False)
        options = _options_of(question.json_bytes, question.form, question.observe)
        self._start(question.body, options, deadline_s, done)

    async def pump(self) -> None:
        """Wait until the child exits.

        Raises:
            FrameError, OSError: The stream broke.
        """
        await self._end

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every request is answered; False if that takes longer than `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(timeout_s, self._idle.wait())
        return self.inflight == 0

    def close(self, *, ended: bool = False) -> None:
        """Close the stream to the child; unanswered requests get a ServingError.

        Args:
            ended: Whether the child has exited, so it starts no more requests.
        """
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.close()
        for pending in (*self._sent.values(), *self._waiting):
            kind = NotStartedError if self._not_started(pending, ended) else ServingError
            self._settle(pending, kind(self._gone))
        for pending in self._sent.values():
            pending.release()
        self._sent.clear()
        self._parked.clear()
        self._waiting.clear()
        if self._started is not None:
            self._started.close()
            self._started = None

    def _dispatch(self, header: dict[str, Any], body: bytes) -> None:
        kind = header.get("kind")
        if kind is not None:
            if kind == OBSERVED:
                self._options.on_observed(header)
            elif kind == PARKED:
                self._parked.add(header["id"])
                self._send_more()
            elif not self._greeting.done():
                self._greeting.set_result(header)
            return
        self._replied_at = time.monotonic()
        self._parked.discard(header["id"])
        pending = self._sent.pop(header["id"], None)
        if pending is None:  # the channel was closed meanwhile, so its caller got an error
            return
        pending.release()
        if images := header.get("images"):
            self._options.on_batch(images)
        self._settle(pending, _reply(header, body))
        self._send_more()

    def _fail(self, error: Exception | None) -> None:
        """End the channel because the child has exited, or because of an error.

        Whoever waits in `pump` learns of it before the requests do, which may be sent to another process.
        """
        for waiting in (self._end, self._greeting):
            if not waiting.done():
                if error is None:
                    waiting.set_result(None)
                else:
                    waiting.set_exception(error)
                    waiting.exception()  # nobody may be waiting
        if not self._closed:
            self.close(ended=True)

    def _check_open(self, *, alone: bool) -> None:
        """Check that a request can join the queue.

        Raises:
            BusyError, NotStartedError: See `request`.
        """
        if self._closed:
            raise NotStartedError(self._gone)
        if self.inflight >= self._options.queue and not alone:
            raise BusyError(f"model {self._model!r} has {self.inflight} requests waiting; try again later")

    def _start(self, body: RequestBody, options: dict[str, Any], deadline_s: float, done: Done) -> _Pending:
        """Queue a request, and send it if it is its turn."""
        due = time.monotonic() + max(0.0, deadline_s)
        pending = _Pending(next(self._ids), body, options, deadline_s, due, done)
        self._waiting.append(pending)
        self.inflight += 1
        self._idle.clear()
        if deadline_s > 0:
            self._send_more()
            self._watch(due)
        else:
            self._settle(pending, self._overdue(pending))
        return pending

    def _settle(self, pending: _Pending, outcome: Reply | ServingError) -> None:
        """Report the outcome of a request to who waits for it, once."""
        done = pending.done
        if done is not None:
            self._forget(pending)
            try:
                done(outcome)
            except Exception:  # whoever asked is at fault, and neither the child nor the other requests
                log.exception("model %s: the outcome of a request could not be processed", self._model)

    def _forget(self, pending: _Pending) -> None:
        """Count a request no longer. One that was sent keeps its place in the memory until the child replies."""
        if pending.done is None:
            return
        pending.done = None
        if not pending.sent_at:
            self._waiting.remove(pending)
        self.inflight -= 1
        if self.inflight == 0:
            self._idle.set()

    def _watch(self, due: float) -> None:
        """Let requests fail when they are due. One timer serves all of them: one each would cost more than the rest."""
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        unanswered = [each for each in (*self._sent.values(), *self._waiting) if each.done is not None]
        for pending in unanswered:
            if pending.due <= now:
                self._settle(pending, self._overdue(pending))
        if left := [pending.due for pending in unanswered if pending.due > now]:
            self._watch(min(left))

    def _overdue(self, pending: _Pending) -> DeadlineError:
        return DeadlineError(f"model {self._model!r} gave no answer within {pending.deadline_s:g} s")

    def _send_more(self) -> None:
        while self._waiting and len(self._sent) - len(self._parked) < self._at_the_child:
            pending = self._waiting.popleft()
            pending.sent_at = time.monotonic()
            self._sent[pending.id] = pending
            self._send(pending)

    def _send(self, pending: _Pending) -> None:
        assert self._transport is not None  # noqa: S101 - see `connection_made`
        header, body = {"id": pending.id, **pending.options}, pending.body
        if isinstance(body, StoredBody):
            pending.stored = body.hold()
        elif self._memory is not None:
            pending.stored = self._memory.put(body, pending.options["json_bytes"])
        if pending.stored is not None:
            self._transport.write(frames.head({**header, PLACE: pending.stored.place}, b""))
        else:
            assert isinstance(body, bytes)  # noqa: S101 - the others are stored
            self._transport.write(frames.head(header, body))
            self._transport.write(body)

    def _not_started(self, pending: _Pending, ended: bool) -> bool:
        """Return whether the child never started a request, so that cannot be the cause of its exit."""
        if pending.id not in self._sent:
            return True
        return ended and self._started is not None and pending.id > self._started.last_started

    @property
    def _gone(self) -> str:
        return f"model {self._model!r} has lost its process; try again in some seconds"


def _options_of(json_bytes: int | None, form: Form | None, observe: Order | None) -> dict[str, Any]:
    """Return the entries of a frame's header that every request has, or may have."""
    options: dict[str, Any] = {"json_bytes": json_bytes}
    if observe is not None:
        options["observe"] = observe
    if form is not None:
        options["form"] = form
    return options


def _set_outcome(reply: asyncio.Future[Reply], outcome: Reply | ServingError) -> None:
    if reply.done():  # cancelled
        return
    if isinstance(outcome, ServingError):
        reply.set_exception(outcome)
    else:
        reply.set_result(outcome)


def _reply(header: dict[str, Any], body: bytes) -> Reply:
    return Reply(
        header["status"],
        Body(body, header.get("json_bytes"), header.get("media_type")),
        header["seconds"],
        _work(header.get("work")),
    )


def _work(found: list[Any] | None) -> Work | None:
    """Return what the child did, from the JSON of a reply's header."""
    if found is None:
        return None
    images, started_ns, waited_ns, input_ns, infer_ns, output_ns, passes = found
    batch = tuple(Pass(*each) for each in passes)
    return Work(images, started_ns, waited_ns, input_ns, infer_ns, output_ns, batch)

"""The HTTP protocol of one connection: uvicorn's, with bounds on what a client can hold up.

Requests for inference take a shorter way: their bodies are received straight into the memory that is shared with the
generations, and their responses are written without ASGI in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast
from typing import Protocol as Interface

import httptools
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.http.connections import Connections
from service.ipc.shared_memory import NoRoomError, StoredBody

TAKEN = "edged.taken"  # key of a scope: called by who takes the body as it arrives, into memory that others wait for
TOO_SLOW = "edged.too_slow"  # key of a scope: present once the body was refused as too slow
RETRY_S = 1

_READ_BYTES = 1 << 18  # at once, where the body is taken as it arrives
_SMALL_READ_BYTES = 1 << 16  # otherwise: what nobody takes stays in memory
_SHORT_READ_BYTES = 1 << 12  # of a head, and what follows it, while bodies wait for memory
_MAX_HEAD_BYTES = 16 << 10  # of a head that is not complete
_MAX_FIELDS = 100
_RETRIED = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.SERVICE_UNAVAILABLE)
_LINGER_S = 1.0  # for which a client can read the last response
_JOINED_BYTES = 1 << 16  # a response up to this size is written at once
_HURRIED_RATE = 256 << 10  # bytes a second of a body that arrives while others wait for memory


class Answer(Interface):
    """A response as it is sent; those of Starlette are such, too."""

    @property
    def status_code(self) -> int:
        """HTTP status."""

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Names and values of its fields."""

    @property
    def body(self) -> bytes | memoryview:
        """Its content."""


SendAnswer = Callable[[Answer], None]
Run = Callable[[Coroutine[Any, Any, Answer]], None]


class Admission(Interface):
    """An admitted request that is answered without ASGI.

    Attributes:
        body: Place of its body, whose length is that of the place.
    """

    body: StoredBody

    def respond(self, send: SendAnswer, run: Run) -> None:
        """Have the request answered, once its body is complete.

        Args:
            send: Sends the response.
            run: Runs a coroutine in a task, and sends the response that it returns: for a request that has to wait.
        """

    def abandon(self, status: int) -> None:
        """Forget the request, whose body will not be complete, and count it with an HTTP status."""


class DirectRoute(Interface):
    """Decides which requests are answered without ASGI."""

    def __call__(self, scope: Scope) -> Admission | None:
        """Admit a POST request whose head is complete; None for one that the application answers."""


class HostList(Interface):
    """Decides which hosts requests may be meant for."""

    def allows(self, host: bytes) -> bool:
        """Return whether a request with this value of its Host field may be answered."""


class Protocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's protocol with deadlines, and tuned for bodies of some 100 kB: fewer reads, and fewer copies.

    asyncio would read 256 KiB at a time, each into new memory. As before, uvicorn stops reading after each piece until
    the application has taken it.

    Args:
        config: Configuration of uvicorn.
        state: State of uvicorn's server.
        connections: Connections of the server.
        direct: Admits requests that are answered without ASGI; None if there are none.
        hosts: The hosts that requests may be meant for; None for all.
    """

    _buffer = memoryview(bytearray(_READ_BYTES))  # shared: a piece is parsed and copied before the next one is read

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        connections: Connections,
        direct: DirectRoute | None = None,
        hosts: HostList | None = None,
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._connections = connections
        self._direct = direct
        self._allowed = hosts
        self._admission: Admission | None = None  # of the request whose body is arriving
        self._place: memoryview | None = None  # of that body; the transport reads into it
        self._received = 0  # bytes of that body
        self._reserved = 0  # how many it has memory for
        self._is_taken = False  # whether the body arrives in memory that others may wait for
        self._is_waiting = True  # whether no body was asked for yet
        self._hosts = 0  # Host fields of the head
        self._host = b""  # the value of the last one
        self._is_spare = False
        self._is_refused = False  # what still arrives is not read any more
        self._head_bytes = -1  # of the head that is arriving, without its first read; -1 while none is
        self._body_bytes = 0
        self._body_since = 0.0
        self._read_bytes = _SMALL_READ_BYTES

    # What asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or close it if there are too many."""
        super().connection_made(transport)
        self.flow = self._timed_flow = _TimedFlowControl(transport)
        self._is_spare = self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connections.closed(self)
        self._abandon(400)
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that the transport reads into."""
        if self._place is not None:
            return self._place[self._received : self._reserved]
        if self._is_waiting and self._connections.is_short:
            return self._buffer[:_SHORT_READ_BYTES]
        return self._buffer[: self._read_bytes]

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read, unless it is a part of a body that was read into its place."""
        if self._place is not None:
            self._body_bytes += nbytes
            self._received += nbytes
            if self._received == self._reserved:
                self._end_or_grow()
            return
        if self._is_refused:
            return
        began = self._head_bytes >= 0
        self.data_received(self._buffer[:nbytes])  # type: ignore[arg-type]  # the parser takes any buffer
        if self._admission is not None:
            self._place, self._reserved = self._admission.body.view, self._admission.body.reserved
        elif self._is_waiting and self._body_bytes and self.cycle.more_body:
            self._is_waiting = False
            if not self.cycle.response_complete:
                self.flow.pause_reading()  # until the application wants the body, or has answered without it
        elif began and self._head_bytes >= 0:
            self._head_bytes += nbytes
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._refuse_large_head()

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._head_bytes, self._hosts, self._host = 0, 0, b""
        self._connections.head_began(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a field of the head, or of the trailer.

        Raises:
            ValueError: There are too many.
        """
        if len(self.headers) >= _MAX_FIELDS:
            raise ValueError("too many fields")
        if len(name) == 4 and name.lower() == b"host":
            self._hosts += 1
            self._host = value
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the application, unless the connection is one too many or the request is meant for another host.

        Raises:
            ValueError: The head has no Host field, which HTTP/1.1 requires, or several.
        """
        if self._hosts != 1 and (self._hosts > 1 or self.parser.get_http_version() == "1.1"):
            raise ValueError("no single Host")
        self._head_bytes = -1
        self._body_bytes, self._body_since = 0, time.monotonic()
        self._timed_flow.restart(self._body_since)
        self._read_bytes, self._is_taken, self._is_waiting = _SMALL_READ_BYTES, False, True
        self._connections.body_began(self)
        is_foreign = self._allowed is not None and not self._allowed.allows(self._host)
        if not is_foreign and self._begin_direct():
            return
        self.scope[TAKEN] = self._take  # type: ignore[literal-required]
        if self._is_spare and self.parser.get_method() not in (b"GET", b"HEAD"):
            self._connections.refusals.note("connections")
            self.app = refuse_connection
        elif is_foreign:
            self._connections.refusals.note("host")
            self.app = refuse_host
        super().on_headers_complete()
        if self._is_spare:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Pass the first piece on unchanged: uvicorn would copy it twice, to a bytearray and back."""
        self._body_bytes += len(body)
        if self._admission is not None:
            end = self._received + len(body)
            self._admission.body.view[self._received : end] = body
            self._received = end
            return
        cycle = self.cycle
        if not cycle.response_complete:
            found: object = cycle.body
            if not found:
                cycle.body, body = body, b""  # type: ignore[assignment]
            elif isinstance(found, bytes):
                cycle.body = bytearray(found)  # can be extended: tiny pieces may follow
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._connections.arrived(self)
        self._is_waiting = True
        if (admission := self._admission) is not None:
            self._admission, self._place = None, None
            self.cycle.more_body = False
            cycle = cast("_DirectCycle", self.cycle)
            admission.respond(
                lambda answer: self._send_answer(answer, cycle),
                lambda waiting: self._run(self._await_answer(waiting, cycle)),
            )
            return
        super().on_message_complete()
        if self.cycle.response_complete and not self.pipeline:
            self._connections.rests(self)

    # What uvicorn calls

    def on_response_complete(self) -> None:
        """Begin the next request that has arrived already, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif not self.cycle.more_body and self._head_bytes < 0:
            self._connections.rests(self)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        if self.headers is not None and len(self.headers) >= _MAX_FIELDS:
            self._refuse_large_head()
        elif not self.transport.is_closing():
            text = "this is no valid HTTP/1.1 request; check its method, its one Host field, and that it uses no TLS"
            self.transport.write(_last_response(HTTPStatus.BAD_REQUEST, text))
            self.transport.close()

    # What `Connections` calls

    def close_idle(self) -> None:
        """Close the connection, which has no request in progress."""
        if self.has_unsent():
            self.transport.abort()
        else:
            self.transport.close()

    def has_unsent(self) -> bool:
        """Return whether the client has not read all of its response yet."""
        return self.transport.get_write_buffer_size() > 0

    def refuse_head(self) -> None:
        """Refuse the unfinished head of a request as too slow, and close the connection."""
        timeout_s = self._connections.serve.head_timeout_s
        self._refuse(408, f"the head of the request was not complete within serve.head_timeout_s = {timeout_s:g}")

    def why_overdue(self, now: float, hurry_s: float | None) -> str | None:
        """Return the reason why the body that is arriving is too slow; None if it is not.

        The time while the server did not read does not count.
        """
        serve = self._connections.serve
        waited_s = now - self._body_since - self._timed_flow.paused_s(now)
        if waited_s > serve.body_timeout_s + self._body_bytes / serve.min_body_rate:
            return (
                f"{self._body_bytes} bytes of the body had arrived within serve.body_timeout_s ="
                f" {serve.body_timeout_s:g} and the time for serve.min_body_rate = {serve.min_body_rate} bytes a second"
            )
        if hurry_s is not None and self._is_taken and waited_s > hurry_s + self._body_bytes / _HURRIED_RATE:
            return (
                f"{self._body_bytes} bytes of the body had arrived within {waited_s:.1f} s, and others wait for room"
                f" within serve.max_arriving_bytes = {serve.arriving_bytes}; try again later"
            )
        return None

    def refuse_body(self, reason: str) -> None:
        """Refuse the unfinished body of a request as too slow, and close the connection."""
        self.scope[TOO_SLOW] = True  # type: ignore[literal-required]
        self._abandon(408)
        self._refuse(408, reason)

    # The short way

    def _begin_direct(self) -> bool:
        """Prepare to receive the body of a request that is answered without ASGI; return whether this is one."""
        parser, scope = self.parser, self.scope
        busy = self.cycle is not None and not self.cycle.response_complete
        if self._direct is None or self._is_spare or busy or parser.get_method() != b"POST" or parser.should_upgrade():
            return False
        path, _, query = self.url.partition(b"?")
        if b"%" in path or b"#" in self.url or not path.startswith(b"/"):
            return False
        scope["method"], scope["path"], scope["raw_path"] = "POST", path.decode("latin-1"), path
        scope["query_string"] = query
        admission = self._direct(scope)  # type: ignore[arg-type]  # uvicorn's type of scopes is its own
        if admission is None:
            return False
        self._admission, self._received, self._is_taken = admission, 0, True
        keep_alive = parser.get_http_version() != "1.0" and parser.should_keep_alive()
        self.cycle = _DirectCycle(keep_alive=keep_alive)  # type: ignore[assignment]
        if self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _end_or_grow(self) -> None:
        """End the request if its body is complete, or else reserve memory for more of it, without reading meanwhile."""
        admission = cast("Admission", self._admission)
        if self._received == len(admission.body):
            self._new_parser()
            self.on_message_complete()
        elif admission.body.try_grow():
            self._reserved = admission.body.reserved
        else:
            self.flow.pause_reading()
            self._run(self._grow(admission))

    async def _grow(self, admission: Admission) -> None:
        """Read on once there is memory for more of a body, or refuse it."""
        refusal = None
        try:
            await admission.body.grow(self._connections.serve.deadline_ms / 1000)
        except NoRoomError as error:
            refusal = str(error)
        if self._admission is not admission:  # the connection was lost, or too slow
            return
        if refusal is None:
            self._reserved = admission.body.reserved
        else:
            self._connections.refusals.note("body_memory")
            self._connections.ends(self)
            self._abandon(503)
            self._refuse(503, refusal)
        self.flow.resume_reading()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a task, which the end of the server waits for."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _await_answer(self, waiting: Coroutine[Any, Any, Answer], cycle: _DirectCycle) -> None:
        """Send the answer to a request that waits for more than its reply."""
        try:
            answer = await waiting
        except BaseException:  # the server does not wait any longer
            self.transport.abort()
            raise
        self._send_answer(answer, cycle)

    def _send_answer(self, answer: Answer, cycle: _DirectCycle) -> None:
        """Send the answer to a request, unless the client is gone."""
        if cycle.disconnected:
            return
        head = _head_of(answer, keep_alive=cycle.keep_alive)
        if len(answer.body) <= _JOINED_BYTES:
            self.transport.write(b"".join((head, answer.body)))
        else:
            self.transport.write(head)
            self.transport.write(answer.body)
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _abandon(self, status: int) -> None:
        """Forget the request whose body is arriving, if it is to be answered without ASGI."""
        admission, self._admission, self._place = self._admission, None, None
        if admission is not None:
            admission.abandon(status)

    def _new_parser(self) -> None:
        """Replace the parser, which has not seen the body."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def _take(self) -> None:
        """Read more at once, and measure from now on: before, the body may have waited for memory."""
        self._read_bytes, self._is_taken, self._is_waiting = _READ_BYTES, True, False
        self._body_since = time.monotonic()
        self._timed_flow.restart(self._body_since)

    def _refuse_large_head(self) -> None:
        self._connections.refusals.note("large_head")
        self._connections.ends(self)
        text = f"the head of the request has over {_MAX_FIELDS} fields or {_MAX_HEAD_BYTES} bytes; send fewer"
        self._refuse(431, text)

    def _refuse(self, status: int, message: str) -> None:
        """Answer a request that has not arrived, unless another response has begun, and close the connection."""
        cycle, self._head_bytes = self.cycle, -1
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or not cycle.more_body or self.pipeline:  # there is no room for this response
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.write(_last_response(status, message))
        # Closed at once, the system would discard the response along with what the client is still sending.
        with contextlib.suppress(OSError):  # the client is gone
            self.transport.write_eof()
        self._is_refused = True
        self.loop.call_later(_LINGER_S, self.transport.close)


class _DirectCycle:
    """What uvicorn's protocol wants to know of a request that is answered without ASGI.

    Attributes:
        keep_alive: Whether the connection stays open after the response.
        more_body: Whether the body is not complete.
        response_started: Whether the response is written.
        response_complete: As `response_started`.
        disconnected: Whether the client is gone.
        message_event: Nobody waits for it.
    """

    def __init__(self, *, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.disconnected = False
        self.message_event = _NO_EVENT


class _NoEvent:
    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()


class _TimedFlowControl(FlowControl):
    """uvicorn's flow control, which also measures how long it did not read."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._paused_s = 0.0
        self._paused_at = 0.0

    def pause_reading(self) -> None:
        """Stop reading."""
        if not self.read_paused:
            self._paused_at = time.monotonic()
        super().pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self.read_paused:
            self._paused_s += time.monotonic() - self._paused_at
        super().resume_reading()

    def restart(self, now: float) -> None:
        """Measure from now on."""
        self._paused_s, self._paused_at = 0.0, now

    def paused_s(self, now: float) -> float:
        """Return the seconds without reading since the last `restart`."""
        return self._paused_s + (now - self._paused_at if self.read_paused else 0.0)


async def refuse_connection(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request on a spare connection, as an ASGI application."""
    await _send_last(send, 503, "serve.max_connections are open and busy; try again later")


async def refuse_host(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request that is meant for another host, as an ASGI application."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
    text = f"Host has value {host!r:.100}, which is no name of this machine; if it is one, add it to serve.hosts"
    await _send_last(send, 421, text)


async def _send_last(send: Send, status: int, message: str) -> None:
    """Send a response with an error, after which the connection is closed."""
    body = json.dumps({"error": message}).encode()
    headers = [
        (b"date", http_date()),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *([(b"retry-after", str(RETRY_S).encode())] if status in _RETRIED else []),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def http_date() -> bytes:
    """Return the value of the Date header now."""
    return _date_of(int(time.time()))


@lru_cache(maxsize=1)
def _date_of(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


def _head_of(response: Answer, *, keep_alive: bool) -> bytes:
    """Return the head of a response as it is sent."""
    fields = [STATUS_LINE[response.status_code], b"date: ", http_date(), b"\r\n"]
    for name, value in response.raw_headers:
        fields += (name, b": ", value, b"\r\n")
    fields.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return b"".join(fields)


def _last_response(status: int, message: str) -> bytes:
    """Return a whole response with an error, after which the connection is closed."""
    body = json.dumps({"error": message}).encode()
    retry = b"retry-after: %d\r\n" % RETRY_S if status in _RETRIED else b""
    return b"%bdate: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%bconnection: close\r\n\r\n%b" % (
        *(STATUS_LINE[status], http_date(), len(body), retry, body),
    )

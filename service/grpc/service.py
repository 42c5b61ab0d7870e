"""The methods of the service: they check a request, call the supervisor, and return its results as messages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from edged.errors import UsageError
from edged.version import __version__
from service.daemon.model_repository import EXTENSIONS
from service.daemon.tokens import Caller
from service.grpc.arrival import TooSlowError, Turns, messages_at_once, receive
from service.grpc.calls import Calls
from service.grpc.errors import Context, Refusal, RefusedError, refusal_of, refusal_of_reply, refuse, status_of
from service.grpc.health import Health
from service.grpc.heap import Heap
from service.grpc.messages import HEALTH, HEALTH_METHODS, METHODS, SERVICE
from service.grpc.requests import MOST_STRUCTURE, Parts, parse_message, parts_of
from service.grpc.responses import response_of
from service.grpc.unsupported import explain
from service.ipc.messages import Reply, RequestError
from service.ipc.shared_memory import LEAST_BYTES, NoRoomError, RequestBody

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor

_INFER = "ModelInfer"
_SMALL_AT_ONCE, _SMALL_S = 1, 3.0  # messages of other methods: they have a few bytes, and arrive with their call
Json = dict[str, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
T = TypeVar("T")


class InferenceService(grpc.GenericRpcHandler):
    """Finds the handler of a call. Messages are bytes for gRPC, so that each is parsed once and errors are edged's.

    All requests are streams of one message for gRPC: so access is checked before a message is read, and how many
    messages arrive at once is decided here. Those of methods without arguments are not read.

    Args:
        supervisor: The daemon.
        calls: Where calls in progress are counted.
        heap: Told of each message.
    """

    def __init__(self, supervisor: Supervisor, calls: Calls, heap: Heap) -> None:
        serve = supervisor.config.serve
        self._supervisor = supervisor
        self._calls = calls
        self._heap = heap
        self._health = Health(supervisor, calls)
        text = "the messages of other requests take serve.max_arriving_bytes = {}; try again later"
        full = Refusal(503, text.format(serve.arriving_bytes), retry=True)
        self._turns = Turns(messages_at_once(serve), serve.body_timeout_s, full)
        full = Refusal(503, "the messages of other requests are slow to arrive; try again later", retry=True)
        self._small_turns = Turns(_SMALL_AT_ONCE, 2 * _SMALL_S, full)
        answers: Mapping[str, Callable[[Any], Json]] = {
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.refuse_load,
            "RepositoryModelUnload": self.refuse_unload,
        }
        without_arguments: Mapping[str, Callable[[], Json]] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
        }
        self._handlers = {_path(name): self._small(METHODS[name], answer) for name, answer in answers.items()}
        for name, found in without_arguments.items():
            self._handlers[_path(name)] = self._constant(METHODS[name], found)
        self._handlers[_path(_INFER)] = grpc.stream_unary_rpc_method_handler(self._guarded(self.infer))
        self._handlers[f"/{HEALTH}/Check"] = self._small(HEALTH_METHODS["Check"], self._health.check)
        self._handlers[f"/{HEALTH}/Watch"] = grpc.stream_stream_rpc_method_handler(self._guarded(self.watch))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a call; None for one of another service."""
        path = handler_call_details.method
        if (handler := self._handlers.get(path)) is not None:
            return handler
        return _unimplemented(path) if path.startswith(_path("")) else None

    def server_live(self) -> Json:
        """ServerLive: the daemon answers at all."""
        return {"live": True}

    def server_ready(self) -> Json:
        """ServerReady: every model that has a generation serves."""
        return {"ready": self._supervisor.ready}

    def model_ready(self, request: Any) -> Json:
        """ModelReady: a model or version that is unknown is not ready, as Triton says it."""
        try:
            server = self._supervisor.repository.find(request.name, request.version or None)
        except UsageError:
            return {"ready": False}
        return {"ready": server.live is not None}

    def server_metadata(self) -> Json:
        """ServerMetadata."""
        return {"name": "edged", "version": __version__, "extensions": EXTENSIONS}

    def model_metadata(self, request: Any) -> Json:
        """ModelMetadata: names, types and shapes of inputs and outputs."""
        return self._supervisor.repository.metadata(request.name, request.version or None)

    def model_config(self, request: Any) -> Json:
        """ModelConfig: Triton's configuration of a model."""
        return {"config": self._supervisor.repository.config(request.name, request.version or None)}

    def model_statistics(self, request: Any) -> Json:
        """ModelStatistics: of one model, or of all if none is named."""
        return self._supervisor.repository.statistics(request.name or None, request.version or None)

    def repository_index(self, request: Any) -> Json:
        """RepositoryIndex: the generations on the disk."""
        return {"models": self._supervisor.repository.index(ready=request.ready)}

    def refuse_load(self, request: Any) -> Json:
        """RepositoryModelLoad: always an error, which says what to do instead."""
        raise self._supervisor.repository.why_not_loaded(request.model_name)

    def refuse_unload(self, request: Any) -> Json:
        """RepositoryModelUnload: always an error, which says what to do instead."""
        raise self._supervisor.repository.why_not_loaded(request.model_name, unload=True)

    async def watch(self, context: Context) -> None:
        """Health's Watch."""
        await self._health.watch(await self._receive_small(HEALTH_METHODS["Watch"][0], context), context)

    async def infer(self, context: Context) -> bytes:
        """ModelInfer."""
        start, supervisor = time.monotonic(), self._supervisor
        await supervisor.tokens.require_inference(_caller(context))
        async with contextlib.AsyncExitStack() as turn:
            await self._take_turn(turn)
            message = parse_message(await self._receive(context))
            named = (message.model_name, message.model_version or None)
            model = supervisor.repository.find(*named).name
            try:
                parts = parts_of(message)
                del message  # it holds the tensors, too
                reply = await self._ask(named, parts, turn, context)
            except BaseException as error:
                supervisor.metrics.count_request(model, _status_of(error, context), time.monotonic() - start)
                raise
        # The reply is sent first, before the loop turns.
        counted = (model, reply.status, time.monotonic() - start)
        asyncio.get_running_loop().call_soon(supervisor.metrics.count_request, *counted)
        if reply.status != 200:
            raise RefusedError(refusal_of_reply(reply))
        serialized: bytes = response_of(reply.body, typed=parts.typed).SerializeToString()
        return serialized

    async def _ask(
        self, named: tuple[str, str | None], parts: Parts, turn: contextlib.AsyncExitStack, context: Context
    ) -> Reply:
        """Have the model of a name and a version answer; `turn` ends once the request is in the shared memory."""
        repository, deadline_s = self._supervisor.repository, self._supervisor.config.serve.deadline_ms / 1000
        if (remaining_s := context.time_remaining()) is not None:
            deadline_s = min(deadline_s, max(0.0, remaining_s))
        async with self._stored(parts, deadline_s) as (body, left_s):
            await turn.aclose()
            left_s = await repository.find(*named).wait_until_up(left_s)
            server = repository.find(*named)  # again: its version may have been replaced meanwhile
            return await server.infer(body, left_s, len(parts.header))

    @contextlib.asynccontextmanager
    async def _stored(self, parts: Parts, timeout_s: float) -> AsyncIterator[tuple[RequestBody, float]]:
        """Hold a request in the memory that is shared with the generations, unless it is small.

        Yields:
            The request, and the seconds that are left of `timeout_s`.

        Raises:
            RefusedError: There is no room in time.
        """
        if parts.size < LEAST_BYTES:
            yield parts.join(), timeout_s
            return
        memory, start = self._supervisor.body_memory, time.monotonic()
        try:
            stored = await memory.reserve(parts.size, len(parts.header), timeout_s)
        except NoRoomError as error:
            self._supervisor.metrics.count_http_refusal("body_memory")
            raise RefusedError(Refusal(503, str(error), retry=True)) from None
        try:
            parts.write_to(stored.view)
            parts.tensors.clear()
            yield stored, max(0.0, timeout_s - (time.monotonic() - start))
        finally:
            stored.release()

    async def _take_turn(self, turn: contextlib.AsyncExitStack) -> None:
        """Wait until the message of an inference request may arrive.

        Raises:
            RefusedError: Those of others took too long.
        """
        try:
            await turn.enter_async_context(self._turns)
        except RefusedError:
            self._supervisor.metrics.count_http_refusal("body_memory")
            raise

    async def _receive(self, context: Context) -> bytes:
        """Return the message of an inference request, once it has arrived.

        Raises:
            RefusedError: It is larger than allowed, or too slow.
        """
        serve = self._supervisor.config.serve
        try:
            raw = await receive(context, serve.body_timeout_s, "ModelInferRequest")
        except TooSlowError:
            self._supervisor.metrics.count_http_refusal("slow_body")
            raise
        self._heap.note_message(len(raw))
        if len(raw) > serve.max_body_bytes:
            text = f"body is over serve.max_body_bytes = {serve.max_body_bytes}; send fewer images per request"
            raise RefusedError(Refusal(413, text))
        return raw

    async def _receive_small(self, kind: Any, context: Context) -> Any:
        """Return the parsed message of a method other than ModelInfer."""
        async with self._small_turns:
            raw = await receive(context, _SMALL_S, kind.DESCRIPTOR.name)
        self._heap.note_message(len(raw))
        if len(raw) > MOST_STRUCTURE:
            raise RefusedError(Refusal(413, f"the message has {len(raw)} bytes; send at most {MOST_STRUCTURE}"))
        return _parsed(kind, raw)

    def _small(self, kinds: tuple[Any, Any], answer: Callable[[Any], Json]) -> Handler:
        """Return the handler of a method whose messages are small."""
        request, response = kinds

        async def call(context: Context) -> bytes:
            return _serialized(response, answer(await self._receive_small(request, context)))

        return grpc.stream_unary_rpc_method_handler(self._guarded(call))

    def _constant(self, kinds: tuple[Any, Any], answer: Callable[[], Json]) -> Handler:
        """Return the handler of a method without arguments, which answers however busy others are."""
        _, response = kinds

        async def call(_: Context) -> bytes:
            return _serialized(response, answer())

        return grpc.stream_unary_rpc_method_handler(self._guarded(call))

    def _guarded(self, call: Callable[[Context], Awaitable[T]]) -> Callable[[Any, Context], Awaitable[T]]:
        """Return a handler that counts the calls in progress and answers the errors of `call`."""

        async def handler(_: Any, context: Context) -> T:
            with self._calls.one():
                try:
                    return await call(context)
                except Exception as error:
                    refusal = refusal_of(error)
                # Not within the handler above: gRPC keeps the error of an aborted call for a while, and with it the
                # one that it is raised from, whose traceback holds the message.
                return await refuse(context, refusal)

        return handler


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"


def _serialized(response: Any, values: Json) -> bytes:
    found: bytes = ParseDict(values, response(), ignore_unknown_fields=True).SerializeToString()
    return found


def _unimplemented(path: str) -> Handler:
    """Return the handler of a method that edged does not have; it is not read, so it may be a stream."""

    async def handler(_: Any, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, explain(path.rpartition("/")[2]))

    return grpc.stream_stream_rpc_method_handler(handler)


def _parsed(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise RequestError(f"the message is no {kind.DESCRIPTOR.name}; send one of inference.proto") from None


def _caller(context: Context) -> Caller:
    found = next((value for key, value in context.invocation_metadata() or () if key == "authorization"), "")
    kind, _, rest = context.peer().partition(":")  # such as ipv4:127.0.0.1:40000 and ipv6:%5B::1%5D:40000
    address = unquote(rest.rpartition(":")[0]).strip("[]") if kind in ("ipv4", "ipv6") else ""
    return Caller(found if isinstance(found, str) else "", address)


def _status_of(error: BaseException, context: Context) -> int:
    """Return the HTTP status that a failed request counts as."""
    if isinstance(error, Exception):
        return status_of(error)
    # Cancelled: the client's deadline has passed, or it has gone.
    remaining_s = context.time_remaining()
    return 504 if remaining_s is not None and remaining_s <= 0 else 400

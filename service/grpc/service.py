"""The methods of the service: they check a request, call the supervisor, and return its results as messages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from grpc import aio

from edged.version import __version__
from service.daemon.model_repository import EXTENSIONS
from service.daemon.tokens import require_inference_token
from service.grpc.errors import Context, Refusal, RefusedError, refusal_of, refusal_of_reply, refuse, status_of
from service.grpc.messages import METHODS, SERVICE
from service.grpc.requests import Parts, parse_message, parts_of
from service.grpc.responses import response_of
from service.ipc.messages import Reply, RequestError
from service.ipc.shared_memory import LEAST_BYTES, NoRoomError, RequestBody
from service.system.timeouts import within

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor

_INFER = "ModelInfer"
_ARRIVING = 16  # messages at once: their sizes are unknown until they have arrived, and gRPC holds them until then
Json = dict[str, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class InferenceService(grpc.GenericRpcHandler):
    """Finds the handler of a call. Messages are bytes for gRPC, so that each is parsed once and errors are edged's.

    Args:
        supervisor: The daemon.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._arriving = asyncio.Semaphore(_ARRIVING)
        answers: Mapping[str, Callable[[Any], Json]] = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.refuse_load,
            "RepositoryModelUnload": self.refuse_load,
        }
        self._handlers = {_path(name): _unary(name, answer) for name, answer in answers.items()}
        # A stream of one message, so that access and the time it takes to arrive are checked before it is read.
        self._handlers[_path(_INFER)] = grpc.stream_unary_rpc_method_handler(_guarded(self.infer))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a call; None for one of another service."""
        path = handler_call_details.method
        if (handler := self._handlers.get(path)) is not None:
            return handler
        return _unimplemented(path) if path.startswith(_path("")) else None

    def server_live(self, _: Any) -> Json:
        """ServerLive: the daemon answers at all."""
        return {"live": True}

    def server_ready(self, _: Any) -> Json:
        """ServerReady: every model that has a generation serves."""
        return {"ready": self._supervisor.ready}

    def model_ready(self, request: Any) -> Json:
        """ModelReady."""
        return {"ready": self._supervisor.repository.find(request.name, request.version or None).live is not None}

    def server_metadata(self, _: Any) -> Json:
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
        """RepositoryModelLoad and RepositoryModelUnload: always an error, which says what to do instead."""
        raise self._supervisor.repository.why_not_loaded(request.model_name)

    async def infer(self, context: Context) -> bytes:
        """ModelInfer."""
        start, supervisor = time.monotonic(), self._supervisor
        require_inference_token(_authorization(context), supervisor.config.serve)
        message = parse_message(await self._receive(context))
        model = supervisor.repository.find(message.model_name, message.model_version or None).name
        try:
            reply, typed = await self._ask(message, context)
        except BaseException as error:
            supervisor.metrics.count_request(model, _status_of(error, context), time.monotonic() - start)
            raise
        # The reply is sent first, before the loop turns.
        counted = (model, reply.status, time.monotonic() - start)
        asyncio.get_running_loop().call_soon(supervisor.metrics.count_request, *counted)
        if reply.status != 200:
            raise RefusedError(refusal_of_reply(reply))
        serialized: bytes = response_of(reply.body, typed=typed).SerializeToString()
        return serialized

    async def _ask(self, message: Any, context: Context) -> tuple[Reply, bool]:
        """Have the model answer; returns its reply, and whether the response has typed contents."""
        repository, deadline_s = self._supervisor.repository, self._supervisor.config.serve.deadline_ms / 1000
        if (remaining_s := context.time_remaining()) is not None:
            deadline_s = min(deadline_s, max(0.0, remaining_s))
        named = (message.model_name, message.model_version or None)
        parts = parts_of(message)
        async with self._stored(parts, deadline_s) as (body, left_s):
            left_s = await repository.find(*named).wait_until_up(left_s)
            server = repository.find(*named)  # again: its version may have been replaced meanwhile
            return await server.infer(body, left_s, len(parts.header)), parts.typed

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
            yield stored, max(0.0, timeout_s - (time.monotonic() - start))
        finally:
            stored.release()

    async def _receive(self, context: Context) -> bytes:
        """Return the message of a call, once it has arrived.

        Raises:
            RefusedError: It is larger than allowed, or too slow.
        """
        serve = self._supervisor.config.serve
        try:
            raw = await within(serve.body_timeout_s, self._read(context))
        except asyncio.TimeoutError:
            self._supervisor.metrics.count_http_refusal("slow_body")
            text = f"the message did not arrive within serve.body_timeout_s = {serve.body_timeout_s:g}; send less"
            raise RefusedError(Refusal(408, text)) from None
        if raw is aio.EOF:  # gRPC has answered already: the message is over its limit
            raise RefusedError(Refusal(400, "there is no message; send one ModelInferRequest"))
        if len(raw) > serve.max_body_bytes:
            text = f"body is over serve.max_body_bytes = {serve.max_body_bytes}; send fewer images per request"
            raise RefusedError(Refusal(413, text))
        return bytes(raw)

    async def _read(self, context: Context) -> Any:
        async with self._arriving:
            return await context.read()


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"


def _guarded(call: Callable[[Context], Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
    """Return a handler that answers the errors of `call`."""

    async def handler(_: Any, context: Context) -> bytes:
        try:
            return await call(context)
        except Exception as error:
            await refuse(context, refusal_of(error))
            raise  # never reached

    return handler


def _unary(name: str, answer: Callable[[Any], Json]) -> Handler:
    """Return the handler of a method whose response is small."""
    request, response = METHODS[name]

    async def handler(raw: bytes, context: Context) -> bytes:
        try:
            found = ParseDict(answer(_parsed(request, raw)), response(), ignore_unknown_fields=True)
        except Exception as error:
            await refuse(context, refusal_of(error))
            raise  # never reached
        serialized: bytes = found.SerializeToString()
        return serialized

    return grpc.unary_unary_rpc_method_handler(handler)


def _unimplemented(path: str) -> Handler:
    """Return the handler of a method that edged does not have; it is not read, so it may be a stream."""

    async def handler(_: Any, context: Context) -> None:
        method = path.rpartition("/")[2]
        text = f"{method} is not served: tensors are sent in messages, one request at a time; see docs/grpc.md"
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

    return grpc.stream_stream_rpc_method_handler(handler)


def _parsed(kind: Any, raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise RequestError(f"the message is no {kind.DESCRIPTOR.name}; send one of inference.proto") from None


def _authorization(context: Context) -> str:
    found = next((value for key, value in context.invocation_metadata() or () if key == "authorization"), "")
    return found if isinstance(found, str) else ""


def _status_of(error: BaseException, context: Context) -> int:
    """Return the HTTP status that a failed request counts as."""
    if isinstance(error, Exception):
        return status_of(error)
    # Cancelled: the client's deadline has passed, or it has gone.
    remaining_s = context.time_remaining()
    return 504 if remaining_s is not None and remaining_s <= 0 else 400

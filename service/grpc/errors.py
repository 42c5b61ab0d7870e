"""Errors as gRPC statuses: the code of each, and the message, which is the same as over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias

import grpc
from grpc import aio

from edged.errors import EdgedError
from service.daemon.statuses import status_of_error
from service.grpc.responses import error_of
from service.ipc.messages import Reply, RequestError
from service.serving.channel import ServingError

Context: TypeAlias = "aio.ServicerContext[Any, Any]"

log = logging.getLogger(__name__)

_CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_MAX_MESSAGE = 2000  # characters; it is sent in a header, and clients limit those
# Of gRPC's retries: a queue empties and a process is restarted within a few seconds.
_RETRY = (("grpc-retry-pushback-ms", "1000"),)


class Refusal(NamedTuple):
    """An error as a client gets it.

    Attributes:
        status: HTTP status, for the metrics.
        message: Text for a person.
        retry: Whether the client should try again in a second.
    """

    status: int
    message: str
    retry: bool = False


class RefusedError(Exception):
    """A request is refused.

    Args:
        refusal: What the client gets.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def status_of(error: Exception) -> int:
    """Return the HTTP status that a failed request counts as."""
    if isinstance(error, RefusedError):
        return error.refusal.status
    return 400 if isinstance(error, RequestError) else status_of_error(error)


def refusal_of(error: Exception) -> Refusal:
    """Return what a client gets for an error; an unexpected one is logged."""
    if isinstance(error, RefusedError):
        return error.refusal
    if isinstance(error, (RequestError, EdgedError)):
        return Refusal(status_of(error), str(error), isinstance(error, ServingError))
    log.error("a request failed: %r", error)
    return Refusal(500, f"unexpected {type(error).__name__}; see the log of the daemon")


def refusal_of_reply(reply: Reply) -> Refusal:
    """Return what a client gets for a generation's reply that is an error."""
    return Refusal(reply.status, error_of(reply.body))


async def refuse(context: Context, refusal: Refusal) -> NoReturn:
    """End a call with an error.

    Raises:
        grpc.aio.AbortError: Always.
    """
    code = _CODES.get(refusal.status, grpc.StatusCode.INTERNAL)
    await context.abort(code, refusal.message[:_MAX_MESSAGE], _RETRY if refusal.retry else ())

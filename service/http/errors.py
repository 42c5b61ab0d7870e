"""Errors as HTTP responses: the status of each, and the body, which is the same for all."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edged.errors import EdgedError
from service.daemon.guesses import GuessError
from service.daemon.statuses import status_of_error
from service.http.parameters import ParameterError
from service.http.protocol import RETRY_S
from service.http.unsupported import explain
from service.serving.channel import ServingError

log = logging.getLogger(__name__)

RETRY = {"Retry-After": str(RETRY_S)}  # seconds: a queue empties and a process is restarted within a few


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the response to an error."""
    if isinstance(error, HTTPException):
        return error.status_code
    if isinstance(error, ParameterError):
        return 400
    return status_of_error(error)


async def response_to(request: Request, error: Exception) -> Response:
    """Return the response to an error, as Starlette would."""
    return await next(HANDLERS[kind] for kind in type(error).__mro__ if kind in HANDLERS)(request, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for nothing else
    what = error.detail
    if what == HTTPStatus(error.status_code).phrase:  # the router's detail, which only repeats the status
        path = request.url.path
        what = explain(request.method, path) or f"{request.method} {path:.200} is not served: {what}"
    return JSONResponse({"error": what}, error.status_code, dict(error.headers or {}))


async def _serving_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)  # noqa: S101 - registered for nothing else
    return JSONResponse({"error": str(error), "code": error.code}, status_of(error), RETRY)


async def _guess_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, GuessError)  # noqa: S101 - registered for nothing else
    retry = {"Retry-After": str(error.retry_s)}
    return JSONResponse({"error": str(error), "code": error.code}, status_of(error), retry)


async def _edged_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EdgedError)  # noqa: S101 - registered for nothing else
    return JSONResponse({"error": str(error), "code": error.code}, status_of(error))


async def _unexpected(_: Request, error: Exception) -> Response:
    log.error("a request failed: %r", error)
    return JSONResponse({"error": f"unexpected {type(error).__name__}; see the log of the daemon"}, 500)


HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    HTTPException: _http_error,
    ServingError: _serving_error,
    GuessError: _guess_error,
    EdgedError: _edged_error,
    Exception: _unexpected,
}

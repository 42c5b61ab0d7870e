"""The route that answers inference requests, through Starlette or straight from the protocol of a connection."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service.http.auth import LOCAL, allows_inference, check_inference
from service.http.bodies import BodyLimits, check_body, response_of, store_body
from service.http.errors import response_to, status_of
from service.http.forms import form_of
from service.http.refusals import Refusals
from service.ipc.messages import Form
from service.ipc.shared_memory import StoredBody

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor
    from service.serving.model_server import ModelServer

log = logging.getLogger(__name__)

_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


def is_inference(path: str) -> bool:
    """Return whether a path is that of inference requests."""
    return _PATH.fullmatch(path) is not None


class Message(NamedTuple):
    """What a request sends.

    Attributes:
        body: Its body.
        json_bytes: Length of the JSON in the body in bytes; None if the body is all JSON.
        form: What it says next to its body; None for nothing.
    """

    body: StoredBody
    json_bytes: int | None
    form: Form | None


class InferenceRoute:
    """Handler of POST /v2/models/{model}/infer.

    Args:
        supervisor: The daemon.
        refusals: Counts what is refused.
    """

    def __init__(self, supervisor: Supervisor, refusals: Refusals) -> None:
        self._supervisor = supervisor
        self._refusals = refusals

    async def infer(self, request: Request) -> Response:
        """Answer a request whose body arrives through Starlette: in chunks, or while there is no room for it."""
        model, start = self._service(request).name, time.monotonic()
        try:
            await check_inference(request, self._supervisor.tokens)
            form = form_of(request)  # what is wrong with it is reported before the body arrives
            body, json_bytes = await self._store(request)
        except BaseException as error:
            self.count(model, status_of(error), start)
            raise
        try:
            return await self.answer(request, Message(body, json_bytes, form), start)
        finally:
            body.release()

    def admit(self, scope: Scope, *, local: bool) -> Admission | None:
        """Return the admission of a request whose head is complete.

        Args:
            scope: Scope of the request, with its path and headers.
            local: Whether it came through the UNIX socket.

        Returns:
            The admission, with a place for the body; None if the request has to go through Starlette, because it is
            none for inference, its length is not announced, there is no room for it now, or it is refused.
        """
        found = _PATH.fullmatch(scope["path"])
        if found is None:
            return None
        scope["path_params"] = {"model": found[1]} if found[2] is None else {"model": found[1], "version": found[2]}
        scope[LOCAL] = local
        request, start = Request(scope), time.monotonic()
        try:
            service = self._service(request)
            if not allows_inference(request, self._supervisor.tokens):
                return None
            size, json_bytes = check_body(request, self._limits)
            form = form_of(request)
        except Exception:
            return None  # Starlette's way finds the same error, and reports it
        if size is None or (body := self._supervisor.body_memory.take(size, json_bytes, arriving=True)) is None:
            return None
        return Admission(self, request, service.name, Message(body, json_bytes, form), start)

    async def answer(self, request: Request, message: Message, start: float) -> Response:
        """Have the model answer a request whose body is complete.

        Args:
            request: The request.
            message: What it sends; the caller releases the body.
            start: When its head was complete, by time.monotonic().
        """
        model, deadline_s = request.path_params["model"], self._supervisor.config.serve.deadline_ms / 1000
        try:
            left_s = await self._service(request).wait_until_up(deadline_s)
            service = self._service(request)  # again: its version may have been replaced meanwhile
            reply = await service.infer(message.body, left_s, message.json_bytes, message.form)
        except BaseException as error:
            self.count(model, status_of(error), start)
            raise
        # Counting takes a twentieth of a request's time, so the reply is sent first, before the loop turns.
        counted = (model, reply.status, time.monotonic() - start)
        asyncio.get_running_loop().call_soon(self._supervisor.metrics.count_request, *counted)
        return response_of(reply)

    def count(self, model: str, status: int, start: float) -> None:
        """Count a request in the metrics."""
        self._supervisor.metrics.count_request(model, status, time.monotonic() - start)

    @property
    def _limits(self) -> BodyLimits:
        serve, memory = self._supervisor.config.serve, self._supervisor.body_memory
        return BodyLimits(min(serve.max_body_bytes, memory.size), serve.max_json_bytes, serve.deadline_ms / 1000)

    async def _store(self, request: Request) -> tuple[StoredBody, int | None]:
        try:
            return await store_body(request, self._supervisor.body_memory, self._limits)
        except HTTPException as error:
            if error.status_code == 503:
                self._refusals.note("body_memory")
            raise

    def _service(self, request: Request) -> ModelServer:
        path = request.path_params
        return self._supervisor.repository.find(path["model"], path.get("version"))


class Admission:
    """A request that was admitted, and whose body is arriving in its place.

    Args:
        route: Route that answers it.
        request: The request.
        model: Model name.
        message: What it sends.
        start: When its head was complete, by time.monotonic().
    """

    def __init__(self, route: InferenceRoute, request: Request, model: str, message: Message, start: float) -> None:
        self.body = message.body
        self._message = message
        self._route = route
        self._request = request
        self._model = model
        self._start = start

    async def respond(self) -> Response:
        """Return the response, once the body is complete."""
        try:
            return await self._route.answer(self._request, self._message, self._start)
        except Exception as error:
            if status_of(error) == 500:
                log.exception("a request failed")
            return await response_to(self._request, error)
        finally:
            self.body.release()

    def abandon(self, status: int) -> None:
        """Forget the request, whose body will not be complete.

        Args:
            status: HTTP status that it counts as.
        """
        self.body.release()
        self._route.count(self._model, status, self._start)

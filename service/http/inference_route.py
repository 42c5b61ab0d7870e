"""The route that answers inference requests, through Starlette or straight from the protocol of a connection."""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from edged.errors import EdgedError
from service.http.auth import LOCAL, allows_inference, check_inference
from service.http.bodies import BodyLimits, DirectAnswer, answer_of, check_body, response_of, store_body
from service.http.errors import response_to, status_of
from service.http.fields import IndexedRequest
from service.http.forms import form_of
from service.http.protocol import Run, SendAnswer
from service.http.refusals import Refusals
from service.ipc.messages import Reply
from service.ipc.shared_memory import StoredBody
from service.serving.channel import Done, NotStartedError, Question, ServingError

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor
    from service.serving.model_server import ModelServer

log = logging.getLogger(__name__)

_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


def is_inference(path: str) -> bool:
    """Return whether a path is that of inference requests."""
    return _PATH.fullmatch(path) is not None


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
            return response_of(await self.answer(request, Question(body, json_bytes, form), start, self.deadline_s))
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
        request, start = IndexedRequest(scope), time.monotonic()
        try:
            self._service(request)
            if not allows_inference(request, self._supervisor.tokens):
                return None
            size, json_bytes = check_body(request, self._limits)
            form = form_of(request)
        except Exception:
            return None  # Starlette's way finds the same error, and reports it
        if size is None or (body := self._supervisor.body_memory.take(size, json_bytes, arriving=True)) is None:
            return None
        return Admission(self, request, body, Question(body, json_bytes, form), start)

    def begin(self, request: Request, question: Question, done: Done) -> bool:
        """Have the model answer a request at once, without a task; see `ModelServer.begin`.

        Args:
            request: The request.
            question: What it asks; the caller releases the body.
            done: Called with the outcome.

        Returns:
            Whether it is with the model; if not, it is for `answer` to answer it or to say why not.
        """
        try:
            service = self._service(request)  # its version may have been replaced since it was admitted
        except EdgedError:
            return False
        return service.begin(question, self.deadline_s, done)

    async def answer(self, request: Request, question: Question, start: float, deadline_s: float) -> Reply:
        """Have the model answer a request whose body is complete, waiting for a process if there is none.

        Args:
            request: The request.
            question: What it asks; the caller releases the body.
            start: When its head was complete, by time.monotonic().
            deadline_s: Seconds that the answer may take.
        """
        model = request.path_params["model"]
        try:
            left_s = await self._service(request).wait_until_up(deadline_s)
            service = self._service(request)  # again: its version may have been replaced meanwhile
            reply = await service.infer(question.body, left_s, question.json_bytes, question.form)
        except BaseException as error:
            self.count(model, status_of(error), start)
            raise
        self.count(model, reply.status, start)
        return reply

    def count(self, model: str, status: int, start: float) -> None:
        """Count a request in the metrics."""
        self._supervisor.metrics.count_request(model, status, time.monotonic() - start)

    @property
    def deadline_s(self) -> float:
        """Seconds that an answer may take."""
        return self._supervisor.config.serve.deadline_ms / 1000

    @property
    def _limits(self) -> BodyLimits:
        serve, memory = self._supervisor.config.serve, self._supervisor.body_memory
        return BodyLimits(min(serve.max_body_bytes, memory.size), serve.max_json_bytes, self.deadline_s)

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
        body: Place of its body.
        question: What it asks.
        start: When its head was complete, by time.monotonic().
    """

    def __init__(
        self, route: InferenceRoute, request: Request, body: StoredBody, question: Question, start: float
    ) -> None:
        self.body = body
        self._question = question
        self._route = route
        self._request = request
        self._model: str = request.path_params["model"]
        self._start = start

    def respond(self, send: SendAnswer, run: Run) -> None:
        """Have the request answered, once its body is complete; see `service.http.protocol.Admission`."""
        due = time.monotonic() + self._route.deadline_s

        def done(outcome: Reply | ServingError) -> None:
            if isinstance(outcome, NotStartedError):
                run(self._respond(due))  # by another process
                return
            if isinstance(outcome, Reply):
                send(answer_of(outcome))
                status = outcome.status
            else:
                run(response_to(self._request, outcome))
                status = status_of(outcome)
            self.body.release()
            self._route.count(self._model, status, self._start)

        if not self._route.begin(self._request, self._question, done):
            run(self._respond(due))

    async def _respond(self, due: float) -> DirectAnswer | Response:
        """Return the response of a request that waits for a process, or the reason why it gets none."""
        try:
            left_s = max(0.0, due - time.monotonic())
            return answer_of(await self._route.answer(self._request, self._question, self._start, left_s))
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

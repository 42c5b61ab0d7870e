"""Routes of the daemon: they check a request, call the supervisor, and return its results as responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edged.version import __version__
from service.daemon.model_repository import EXTENSIONS, why_not
from service.http.arguments import read_arguments
from service.http.auth import check_admin
from service.http.errors import HANDLERS, RETRY
from service.http.hosts import AllowedHosts, SameSite
from service.http.inference_route import InferenceRoute
from service.http.log_routes import LogRoutes
from service.http.openapi import OpenApiRoutes
from service.http.page_routes import PageRoutes
from service.http.parameters import MAX_NUMBER, ParameterError, flag, whole_number
from service.http.redirects import RelativeRedirects
from service.http.refusals import Refusals
from service.http.report_routes import ReportRoutes
from service.http.repository_routes import RepositoryRoutes
from service.journal.states import State

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor
    from service.serving.model_server import ModelServer

_LISTED, _MAX_LISTED = 100, 1000
_ROLLBACK = '{"to": 3}'


def create_app(supervisor: Supervisor, inference: InferenceRoute, hosts: AllowedHosts, refusals: Refusals) -> Starlette:
    """Create the application with all routes of the daemon.

    Args:
        supervisor: The daemon.
        inference: Handler of inference requests.
        hosts: The hosts that requests may be meant for.
        refusals: Counts what is refused.
    """
    routes = Routes(supervisor)
    model = "/v2/models/{model}"
    return Starlette(
        routes=[
            *(
                Route(prefix + path, handler, methods=[method])
                for prefix in (model, f"{model}/versions/{{version}}")
                for path, handler, method in (
                    ("/infer", inference.infer, "POST"),  # first: routes are matched in this order
                    ("/ready", routes.model_ready, "GET"),
                )
            ),
            *RepositoryRoutes(supervisor.repository).routes,
            Route(model, routes.model),
            Route(f"{model}/versions/{{version}}", routes.model),
            Route("/v2", routes.server),
            Route("/v2/health/live", routes.live),
            Route("/v2/health/ready", routes.ready),
            Route("/metrics", routes.metrics),
            *OpenApiRoutes().routes,
            Route("/edged/v1/status", routes.status),
            Route("/edged/v1/updates", routes.updates),
            Route("/edged/v1/updates/{id:whole}", routes.update),
            Route("/edged/v1/models/{model}/history", routes.history),
            Route("/edged/v1/models/{model}/rollback", routes.rollback, methods=["POST"]),  # before the other actions
            *(
                Route(f"/edged/v1/models/{{model}}/{action}", routes.administer, methods=["POST"])
                for action in supervisor.administration.actions
            ),
            *(
                Route(f"/edged/v1/updates/{{id:whole}}/{action}", routes.act_on_update, methods=["POST"])
                for action in supervisor.update_actions.actions
            ),
            *PageRoutes(supervisor).routes,
            *ReportRoutes(supervisor).routes,
            *LogRoutes(supervisor).routes,
            Route("/edged/v1/gc", routes.collect_garbage, methods=["POST"]),
        ],
        exception_handlers=HANDLERS,
        middleware=[Middleware(RelativeRedirects), Middleware(SameSite, hosts=hosts, refusals=refusals)],
    )


class Routes:
    """Handlers of the protocol and of administration.

    Args:
        supervisor: The daemon.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def server(self, _: Request) -> Response:
        """GET /v2."""
        return JSONResponse({"name": "edged", "version": __version__, "extensions": EXTENSIONS})

    async def live(self, _: Request) -> Response:
        """GET /v2/health/live: the daemon answers at all."""
        return JSONResponse({"live": True})

    async def ready(self, _: Request) -> Response:
        """GET /v2/health/ready: every model that has a generation serves."""
        if self._supervisor.ready:
            return JSONResponse({"ready": True})
        waiting = [service for service in self._supervisor.servers.values() if not service.ready]
        return _not_ready("; ".join(map(why_not, waiting)) or "the daemon is starting or stopping")

    async def model(self, request: Request) -> Response:
        """GET /v2/models/{model}: names, types and shapes of inputs and outputs."""
        path = request.path_params
        return JSONResponse(self._supervisor.repository.metadata(path["model"], path.get("version")))

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/{model}/ready."""
        service = self._service(request)
        return JSONResponse({"ready": True}) if service.live is not None else _not_ready(why_not(service))

    async def metrics(self, _: Request) -> Response:
        """GET /metrics: the Prometheus text format."""
        body, content_type = await self._supervisor.gauges.exposition()
        return Response(body, media_type=content_type)

    async def status(self, _: Request) -> Response:
        """GET /edged/v1/status: everything at a glance."""
        return JSONResponse(await self._supervisor.status())

    async def updates(self, request: Request) -> Response:
        """GET /edged/v1/updates?model=&state=&limit=: the newest first."""
        query = request.query_params
        limit = whole_number(request, "limit", _LISTED, 1, _MAX_LISTED)
        listed = await self._supervisor.queries.updates(query.get("model"), _state(query.get("state")), limit)
        return JSONResponse({"updates": listed})

    async def update(self, request: Request) -> Response:
        """GET /edged/v1/updates/{id}."""
        return JSONResponse(await self._supervisor.queries.update(request.path_params["id"]))

    async def history(self, request: Request) -> Response:
        """GET /edged/v1/models/{model}/history."""
        return JSONResponse(await self._supervisor.queries.history(request.path_params["model"]))

    async def rollback(self, request: Request) -> Response:
        """POST /edged/v1/models/{model}/rollback, with {"to": N} as body for another generation than the previous."""
        await check_admin(request, self._supervisor.tokens)
        to = _generation(await read_arguments(request, _ROLLBACK))
        return JSONResponse(await self._supervisor.administration.rollback(request.path_params["model"], to))

    async def administer(self, request: Request) -> Response:
        """POST /edged/v1/models/{model}/{pin,unpin,pause,resume}."""
        await check_admin(request, self._supervisor.tokens)
        action = self._supervisor.administration.actions[request.url.path.rpartition("/")[2]]
        return JSONResponse(await action(request.path_params["model"]))

    async def act_on_update(self, request: Request) -> Response:
        """POST /edged/v1/updates/{id}/{retry,cancel}."""
        await check_admin(request, self._supervisor.tokens)
        action = self._supervisor.update_actions.actions[request.url.path.rpartition("/")[2]]
        return JSONResponse(await action(request.path_params["id"]))

    async def collect_garbage(self, request: Request) -> Response:
        """POST /edged/v1/gc?dry_run=true|false."""
        await check_admin(request, self._supervisor.tokens)
        return JSONResponse(await self._supervisor.garbage.collect(flag(request, "dry_run")))

    def _service(self, request: Request) -> ModelServer:
        path = request.path_params
        return self._supervisor.repository.find(path["model"], path.get("version"))


def _not_ready(why: str) -> Response:
    return JSONResponse({"ready": False, "error": why}, 503, RETRY)


def _state(text: str | None) -> State | None:
    try:
        return None if text is None else State(text.upper())
    except ValueError:
        known = ", ".join(member.value for member in State)
        raise ParameterError(f"state has value {text!r:.80}; choose one of {known}") from None


def _generation(arguments: Mapping[str, Any]) -> int | None:
    """Return the generation that the arguments of a rollback name; None for the previous one."""
    if not arguments.keys() <= {"to"}:
        raise HTTPException(400, f"unknown key {min(arguments.keys() - {'to'})!r:.80}; send for example {_ROLLBACK}")
    to = arguments.get("to")
    if to is not None and (type(to) is not int or not 1 <= to <= MAX_NUMBER):
        raise HTTPException(400, f"to has value {to!r:.80}; give the number of a generation")
    return to

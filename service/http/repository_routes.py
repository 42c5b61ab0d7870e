"""Routes for what clients of the protocol ask about the models: list, index, configuration, statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.http.arguments import read_arguments

if TYPE_CHECKING:
    from service.daemon.model_repository import ModelRepository

_INDEX = '{"ready": true}'
_ACTIONS = ("load", "unload")


class RepositoryRoutes:
    """Handlers of the protocol's extensions for model configuration, statistics and the model repository.

    Args:
        repository: The models.
    """

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository

    @property
    def routes(self) -> list[Route]:
        """Routes for the application; they have to precede those of a single model, because of /v2/models/stats."""
        model = "/v2/models/{model}"
        return [
            Route("/v2/models", self.names),
            Route("/v2/models/stats", self.statistics),
            *(
                Route(prefix + path, handler)
                for prefix in (model, f"{model}/versions/{{version}}")
                for path, handler in (("/config", self.config), ("/stats", self.statistics))
            ),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            *(
                Route(f"/v2/repository/models/{{model}}/{action}", self.refuse_load, methods=["POST"])
                for action in _ACTIONS
            ),
        ]

    async def names(self, _: Request) -> Response:
        """GET /v2/models: the names of the configured models, as KServe lists them."""
        return JSONResponse({"models": self._repository.names()})

    async def config(self, request: Request) -> Response:
        """GET /v2/models/{model}/config: Triton's ModelConfig."""
        path = request.path_params
        return JSONResponse(self._repository.config(path["model"], path.get("version")))

    async def statistics(self, request: Request) -> Response:
        """GET /v2/models/{model}/stats, of one model, and GET /v2/models/stats, of all."""
        path = request.path_params
        return JSONResponse(self._repository.statistics(path.get("model"), path.get("version")))

    async def index(self, request: Request) -> Response:
        """POST /v2/repository/index, with {"ready": true} as body for what answers requests now."""
        ready = _ready(await read_arguments(request, _INDEX))
        return JSONResponse(self._repository.index(ready=ready))

    async def refuse_load(self, request: Request) -> Response:
        """POST /v2/repository/models/{model}/load and unload: always an error, which says what to do instead."""
        unload = request.url.path.endswith("/unload")
        raise self._repository.why_not_loaded(request.path_params["model"], unload=unload)


def _ready(arguments: Mapping[str, Any]) -> bool:
    """Return whether only models that answer requests are asked for; other arguments are ignored, as by Triton."""
    ready = arguments.get("ready", False)
    if not isinstance(ready, bool):
        raise HTTPException(400, f"ready has value {ready!r:.80}; send for example {_INDEX}")
    return ready

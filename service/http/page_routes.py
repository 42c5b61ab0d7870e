"""Routes of the status page, of its style and scripts, and of the checkpoints that its form uploads."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.http.auth import check_admin, is_local
from service.http.status_page import Rights, render
from service.http.uploads import receive
from service.reporting.page import STATIC

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor

_SCRIPTS = Path(__file__).parent / "static"
_FILES = {"status.css": STATIC} | dict.fromkeys(("status.js", "morph.js", "try_image.js"), _SCRIPTS)
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}
# Only files of this daemon are loaded: even if a name were not escaped, it could not run a script.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class PageRoutes:
    """Handlers of the status page.

    Args:
        supervisor: The daemon.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._static = {name: (folder / name).read_bytes() for name, folder in _FILES.items()}

    @property
    def routes(self) -> list[Route]:
        """Routes for the application."""
        return [
            Route("/", self.page),
            Route("/static/{name}", self.static),
            Route("/edged/v1/models/{model}/drop", self.drop, methods=["POST"]),
        ]

    async def page(self, request: Request) -> Response:
        """GET /: the status page."""
        local, serve = is_local(request), self._supervisor.config.serve
        rights = Rights(local or serve.admin_token is not None, local, serve.inference_token_file is not None)
        # 20 ms for three models of 60 layers, measured: requests for inference do not wait for it.
        text = await asyncio.to_thread(render, await self._supervisor.overview(), rights)
        return HTMLResponse(text, headers=_HEADERS)

    async def static(self, request: Request) -> Response:
        """GET /static/{name}: the style and the scripts of the page."""
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404, f"no file {name!r:.80}; there are {', '.join(self._static)}")
        return Response(self._static[name], media_type=_MEDIA_TYPES[Path(name).suffix], headers=_HEADERS)

    async def drop(self, request: Request) -> Response:
        """POST /edged/v1/models/{model}/drop?name=FILE: save the body, a checkpoint, to the drop folder."""
        config, model = self._supervisor.config, request.path_params["model"]
        await check_admin(request, self._supervisor.tokens)
        self._supervisor.require_model(model)
        name = request.query_params.get("name", "")
        try:
            received = await receive(
                request.stream(),
                config.drop_folder / model,
                name,
                config.watch.max_bytes,
                with_checksum=config.drop.require_checksum,
            )
        except ClientDisconnect:
            raise HTTPException(400, "the client disconnected") from None
        return JSONResponse({"model": model, **received}, 202)

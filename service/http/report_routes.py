"""Routes of an update's report, as a page and as JSON. Rendered per request: the update may still be running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from service.http.auth import may_see_images
from service.reporting.data import without_pictures
from service.reporting.page import policy, render

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor


class ReportRoutes:
    """Handlers of reports.

    Args:
        supervisor: The daemon.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._headers = {
            "Content-Security-Policy": f"{policy()}; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }

    @property
    def routes(self) -> list[Route]:
        """Routes for the application."""
        return [
            Route("/edged/v1/updates/{id:whole}/report", self.page),
            Route("/edged/v1/updates/{id:whole}/report.json", self.json),
        ]

    async def page(self, request: Request) -> Response:
        """GET /edged/v1/updates/{id}/report."""
        return HTMLResponse(render(await self._report(request)), headers=self._headers)

    async def json(self, request: Request) -> Response:
        """GET /edged/v1/updates/{id}/report.json: the data of the page."""
        return JSONResponse(await self._report(request), headers={"Cache-Control": "no-store"})

    async def _report(self, request: Request) -> dict[str, Any]:
        data = await self._supervisor.queries.report(request.path_params["id"])
        return data if await may_see_images(request, self._supervisor.tokens) else without_pictures(data)

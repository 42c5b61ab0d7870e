"""The route of the log: its last lines. They may name paths and clients' files, so it is for administrators."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.http.auth import check_admin
from service.http.parameters import whole_number
from service.system.log_ring import MAX_LINES, about

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor


class LogRoutes:
    """Handler of the log.

    Args:
        supervisor: The daemon.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._started = str(time.time_ns())

    @property
    def routes(self) -> list[Route]:
        """Routes for the application."""
        return [Route("/edged/v1/logs", self.logs)]

    async def logs(self, request: Request) -> Response:
        """GET /edged/v1/logs?model=&update=&after=&since=&limit=: the last lines that match, the oldest first.

        `after` is the number of a line and `since` a time in seconds since 1970; only later lines are returned. `last`
        is the number to ask for next as `after`, as long as `run` stays the same: a new process counts anew.
        """
        await check_admin(request, self._supervisor.tokens)
        model = request.query_params.get("model")
        update = whole_number(request, "update", 0) if "update" in request.query_params else None
        if model is not None:
            self._supervisor.require_model(model)
        after, since = whole_number(request, "after", 0), whole_number(request, "since", 0)
        limit = whole_number(request, "limit", MAX_LINES)
        kept = self._supervisor.log_ring.lines()
        found = [kept[index] for index in about([line.message for line in kept], model, update)]
        lines = [line for line in found if line.number > after and line.at >= since]
        return JSONResponse(
            {
                "run": self._started,
                "last": kept[-1].number if kept else 0,
                "oldest": kept[0].to_dict()["time"] if kept else None,
                "lines": [line.to_dict() for line in lines[max(0, len(lines) - limit) :]],
            },
            headers={"Cache-Control": "no-store"},
        )

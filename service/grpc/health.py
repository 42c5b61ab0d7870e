"""gRPC's standard health check: whether the server as a whole, or its inference service, is ready."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from service.grpc.calls import Calls
from service.grpc.errors import Context, Refusal, RefusedError
from service.grpc.messages import SERVICE, HealthCheckResponse
from service.system.timeouts import within

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor

_SERVICES = ("", SERVICE)  # the empty name means the server
_WATCHERS = 32  # at once; each takes a call for as long as it likes
_INTERVAL_S = 0.5


class Health:
    """Answers of the health check, which are those of `/v2/health/ready`.

    Args:
        supervisor: The daemon.
        calls: Calls in progress.
    """

    def __init__(self, supervisor: Supervisor, calls: Calls) -> None:
        self._supervisor = supervisor
        self._calls = calls
        self._watchers = 0

    def check(self, request: Any) -> dict[str, str]:
        """Check: the status now.

        Raises:
            RefusedError: The service is unknown.
        """
        status = self._status(request.service)
        if status == "SERVICE_UNKNOWN":
            text = f"no service {request.service!r:.80}; ask for '' or {SERVICE!r}"
            raise RefusedError(Refusal(404, text))
        return {"status": status}

    async def watch(self, request: Any, context: Context) -> None:
        """Watch: the status now, and again whenever it has changed, until the server stops.

        Raises:
            RefusedError: Too many clients do this.
        """
        if self._watchers >= _WATCHERS:
            raise RefusedError(Refusal(429, f"{_WATCHERS} clients watch already; call Check instead"))
        self._watchers += 1
        try:
            await self._report_changes(request.service, context)
        finally:
            self._watchers -= 1

    async def _report_changes(self, service: str, context: Context) -> None:
        last = None
        while True:
            stopping = self._calls.stopping.is_set()
            if (status := self._status(service)) != last:
                await context.write(HealthCheckResponse(status=status).SerializeToString())
                last = status
            if stopping:
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await within(_INTERVAL_S, self._calls.stopping.wait())

    def _status(self, service: str) -> str:
        if service not in _SERVICES:
            return "SERVICE_UNKNOWN"
        return "SERVING" if self._supervisor.ready else "NOT_SERVING"

"""The HTTP server of the daemon around an application of a test."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from service.config.sections import ServeConfig
from service.http.connections import Connections
from service.http.protocol import DirectRoute, HostList
from service.http.refusals import Refusals
from service.http.server import make_server


@dataclass
class Served:
    """A running server.

    Attributes:
        port: Its port.
        connections: Its connections.
        refused: What it refused so far, by reason.
    """

    port: int
    connections: Connections
    refused: Counter[str] = field(default_factory=Counter)


@contextlib.asynccontextmanager
async def serving(
    *routes: Route,
    limit: int = 1000,
    direct: DirectRoute | None = None,
    hosts: HostList | None = None,
    is_short: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Run a server with settings of the section `serve`."""
    config = ServeConfig(**settings)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refused: Counter[str] = Counter()
        refusals = Refusals(lambda reason: refused.update([reason]))
        connections = Connections(limit, lambda: config, refusals, is_short)
        server = make_server(Starlette(routes=list(routes)), connections, direct, hosts)
        port = listener.getsockname()[1]
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield Served(port, connections, refused)
            assert not task.done()
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, 30)
            assert len(connections) == 0

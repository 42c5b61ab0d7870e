"""The gRPC server: its port, its limits, and its end."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from grpc import aio

from edged.errors import UnavailableError
from service.grpc.arrival import largest_message
from service.grpc.calls import Calls
from service.grpc.heap import Heap
from service.grpc.service import InferenceService
from service.system.sockets import listen_tcp

if TYPE_CHECKING:
    from service.daemon.supervisor import Supervisor

_LAST_REQUESTS_S = 30.0  # after SIGTERM, as over HTTP
_LAST_BYTES_S = 0.5  # then for their responses to be sent; connections without calls are not waited for
_RPCS = 256  # at once; further ones are refused
_WINDOW_BYTES = 64 << 10  # of a message that nobody reads yet; not grown with the network's speed
_HANDSHAKE_S = 3.0  # until a connection has said that it speaks HTTP/2; those that do not take places of others
_IDLE_MS = 60_000  # a connection without calls is closed; clients open a new one when they need it
_PING_MS, _PONG_MS = 60_000, 20_000  # a client that has vanished is noticed within both together
_IDENTITY_ONLY = 1  # no compression, as over HTTP: bit set of algorithms


class GrpcServer:
    """The gRPC server of a daemon.

    Args:
        supervisor: The daemon; `serve.grpc_port` is set in its configuration.
        connections: Number of connections that may be open.

    Attributes:
        address: HOST:PORT, as clients want it.

    Raises:
        UnavailableError: The port is in use, or the address does not belong to this machine.
    """

    def __init__(self, supervisor: Supervisor, connections: int) -> None:
        serve = supervisor.config.serve
        self._server = aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # or two daemons would share a port
                ("grpc.max_receive_message_length", largest_message(serve)),
                ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
                ("grpc.http2.bdp_probe", 0),
                ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
                ("grpc.max_allowed_incoming_connections", connections),
                ("grpc.server_handshake_timeout_ms", round(1000 * min(serve.head_timeout_s, _HANDSHAKE_S))),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.keepalive_time_ms", _PING_MS),
                ("grpc.keepalive_timeout_ms", _PONG_MS),
            ),
            maximum_concurrent_rpcs=_RPCS,
        )
        self._calls, self._heap = Calls(), Heap()
        self._server.add_generic_rpc_handlers((InferenceService(supervisor, self._calls, self._heap),))
        self.address = self._listen(serve.host, serve.grpc_port or 0)

    async def start(self) -> None:
        """Accept calls from now on."""
        self._heap.keep_freed_memory()
        await self._server.start()

    async def stop(self) -> None:
        """Accept no further calls, and wait for those that have begun."""
        self._calls.stopping.set()
        stopping = asyncio.ensure_future(self._server.stop(_LAST_REQUESTS_S))
        # gRPC itself would also wait for connections that have not said anything yet.
        await self._calls.wait_for_end(_LAST_REQUESTS_S)
        await asyncio.wait({stopping}, timeout=_LAST_BYTES_S)

    def _listen(self, host: str, port: int) -> str:
        # gRPC does not say why it cannot listen, and would look up names in its own way.
        with listen_tcp(host, port, "serve.grpc_port") as probe:
            found = probe.getsockname()[0]
            family = probe.family
        shown = f"[{found}]" if family == socket.AF_INET6 else found
        try:
            return f"{shown}:{self._server.add_insecure_port(f'{shown}:{port}')}"
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen on {shown}:{port}: {error}; change serve.grpc_port") from error

"""What servers add to a request, measured with networks that compute nothing. Used by benchmarks.serving.

All servers run at once and take turns in changing order: request by request where one is in flight at a time, and in
blocks of requests where AT_ONCE are. So other work on the machine affects all of them.
"""

from __future__ import annotations

import importlib.util
import random
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.serving.closed_load import Client, GrpcClient, HttpClient
from benchmarks.serving.daemon import MODEL, PREPARES, Edged
from benchmarks.serving.effort import Effort, Rows, figures
from benchmarks.serving.load import Answer, Call
from benchmarks.serving.payloads import SIDE, Payload, payloads
from benchmarks.serving.peers.server import PREPARED, Peer, missing
from benchmarks.serving.processes import free_port
from service.config.sections import ServeConfig

AT_ONCE = 16
_BLOCK = 8 * AT_ONCE  # requests of a server until it is the next one's turn
_WARM_UP = 20  # turns of one request each
_OTHERS = ("mlserver", "litserve")


@dataclass(frozen=True)
class Way:
    """A server and how it is asked.

    Attributes:
        payload: Key of the payload.
        server: Name of the server.
        transport: "http" or "grpc".
        prepares: Whether the server decodes and normalizes images before its network returns zeros.
        client: What sends the requests, by the number that are in flight.
    """

    payload: str
    server: str
    transport: str
    prepares: bool
    client: dict[int, Client]


@dataclass
class Found:
    """What was measured of one way.

    Attributes:
        answers: Outcomes after the warm-up.
        client_s: CPU seconds that the client took for them.
    """

    answers: list[Answer] = field(default_factory=list)
    client_s: float = 0


@dataclass(frozen=True)
class Servers:
    """The servers of a run.

    Attributes:
        bare: edged without preparation of images.
        preparing: edged as it is.
        grpc: Host and port of gRPC of `bare`; None if it has none.
        peers: Other servers by name.
    """

    bare: Edged
    preparing: Edged
    grpc: str | None
    peers: dict[str, Peer]


def overhead(effort: Effort) -> Rows:
    """Send three forms of an image to all servers, one request at a time and several."""
    rows: Rows = [{"missing": reason} for name in effort.compare if (reason := missing(effort.peers, name))]
    if reason := without_grpc():
        rows.append({"missing": reason})
    with _servers(effort) as servers:
        for name, payload in payloads().items():
            ways = list(_ways(servers, name, payload))
            for at_once, requests in ((1, effort.rounds), (AT_ONCE, effort.together)):
                rows += measure(ways, at_once, requests)
            for client in (client for way in ways for client in way.client.values()):
                client.close()
    return rows


def without_grpc() -> str | None:
    """Return why gRPC cannot be measured, or None if it can be."""
    if "grpc_port" not in {each.name for each in fields(ServeConfig)}:
        return "gRPC was not measured: this edged has no serve.grpc_port"
    if importlib.util.find_spec("grpc") is None:
        return "gRPC was not measured: grpcio is not installed; pip install edged[grpc] tritonclient[grpc]"
    return None


@contextmanager
def _servers(effort: Effort) -> Iterator[Servers]:
    with ExitStack() as running:
        scratch = Path(running.enter_context(tempfile.TemporaryDirectory()))
        port = None if without_grpc() else free_port()
        daemons = []
        for altered, grpc_port in (("bare", port), ("empty", None)):
            own = scratch / altered
            own.mkdir()
            serve = {"port": 0} if grpc_port is None else {"port": 0, "grpc_port": grpc_port}
            daemon = running.enter_context(Edged(own, side=SIDE, altered=altered, worker=PREPARES, serve=serve))
            daemon.put_live()
            daemons.append(daemon)
        peers = {
            name: running.enter_context(Peer(name, effort.peers, scratch, [], SIDE))
            for name in effort.compare
            if missing(effort.peers, name) is None
        }
        yield Servers(*daemons, None if port is None else f"127.0.0.1:{port}", peers)


def _ways(servers: Servers, name: str, payload: Payload) -> Iterator[Way]:
    """Yield the ways to send a payload, edged's first."""

    def http(server: Edged | Peer, call: Call, prepares: bool = False) -> Way:
        clients: dict[int, Client] = {n: HttpClient(server.address, call, n) for n in (1, AT_ONCE)}
        return Way(name, server.name, "http", prepares, clients)

    def grpc(server: str, address: str, model: str) -> Way:
        tensor = (payload.input, payload.datatype, payload.values)
        clients: dict[int, Client] = {n: GrpcClient(address, model, *tensor, at_once=n) for n in (1, AT_ONCE)}
        return Way(name, server, "grpc", False, clients)

    triton, model = servers.peers.get("triton"), MODEL if payload.input == "input" else payload.input
    yield http(servers.bare, payload.call(MODEL))
    if triton:
        yield http(triton, payload.call(model))
    if "uvicorn" in servers.peers:
        yield http(servers.peers["uvicorn"], Call("/", payload.call(MODEL).body))
    if payload.input == "input":  # the others read images in formats of their own
        yield from (http(peer, peer.call) for other, peer in servers.peers.items() if other in _OTHERS)
    else:
        yield http(servers.preparing, payload.call(MODEL), prepares=True)
        if triton:
            yield http(triton, payload.call(model + PREPARED), prepares=True)
    if servers.grpc:
        yield grpc("edged", servers.grpc, MODEL)
        if triton:
            yield grpc("triton", triton.grpc_address, model)


def measure(ways: list[Way], at_once: int, requests: int) -> Rows:
    """Send requests to each server in turns and return a row for each.

    Args:
        ways: The servers and how they are asked.
        at_once: Number of requests in flight.
        requests: Number of requests to each server, besides those that warm it up.
    """
    size, warm_up = (1, _WARM_UP) if at_once == 1 else (_BLOCK, 1)
    found = [Found() for _ in ways]
    turns = list(zip(ways, found, strict=True))
    order = random.Random(0)  # noqa: S311 - a server that works on after its response affects all others alike
    for turn in range(requests // size + warm_up):
        order.shuffle(turns)
        for way, own in turns:
            sent = way.client[at_once].send(size)
            if turn >= warm_up:
                own.answers += sent.answers
                own.client_s += sent.client_s
    return [_row(way, at_once, own) for way, own in zip(ways, found, strict=True)]


def _row(way: Way, at_once: int, found: Found) -> dict[str, Any]:
    return {
        "payload": way.payload,
        "server": way.server,
        "transport": way.transport,
        "prepares": way.prepares,
        "at_once": at_once,
        "requests": len(found.answers),
        "failed": sum(answer.failed for answer in found.answers),
        "closed": figures(found.answers),
        "client_ms": round(1000 * found.client_s / len(found.answers), 3),
    }

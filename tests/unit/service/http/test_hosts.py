import asyncio
from collections import Counter
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from service.config.sections import ServeConfig
from service.http.auth import LocalOnly
from service.http.hosts import AllowedHosts, SameSite
from service.http.refusals import Refusals
from tests.support.http_server import serving

OWN = frozenset({"edge", "edge.local"})


def allowed(*configured: str, host: str = "127.0.0.1") -> AllowedHosts:
    config = ServeConfig(hosts=configured, host=host)
    return AllowedHosts(lambda: config, lambda: OWN)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "LocalHost:8080",
        "localhost.",
        "box.localhost:1",
        "127.0.0.1:8080",
        "192.168.1.20",
        "[::1]:8080",
        "[fe80::1]",
        "edge",
        "EDGE.local:8080",
        "edge.",
        "listen.example",
        "proxy.example",
        "fleet.example:443",
        "a.b.fleet.example",
    ],
)
def test_hosts_that_are_allowed(host: str) -> None:
    hosts = allowed("proxy.example", ".fleet.example", host="listen.example")
    assert hosts.allows(host.encode())
    assert hosts.allows(host.encode())  # remembered


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "edge.evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "notlocalhost",
        "xproxy.example",
        "a.proxy.example",
        "xfleet.example",
        "evil.example@localhost",
        "localhost/evil.example",
        "localhost evil.example",
        "localhost:8080:evil.example",
        "localhost:port",
        "[evil.example]",
        "[::1",
        "::1",
        "2130706433",
        "0x7f.1",
        "\xff\xfe",
        ".",
        "[::1%25evil.example]",
    ],
)
def test_hosts_that_are_not(host: str) -> None:
    assert not allowed("proxy.example", ".fleet.example").allows(host.encode("latin-1"))
    assert allowed("*").allows(host.encode("latin-1"))


def test_a_reload_counts_at_once_and_what_is_remembered_is_bounded() -> None:
    config = ServeConfig(hosts=("*",))
    hosts = AllowedHosts(lambda: config, lambda: OWN)
    for number in range(1000):
        assert hosts.allows(b"name-%d" % number)
    assert len(hosts._known) <= 256
    config = ServeConfig()
    assert not hosts.allows(b"name-999")


def test_names_of_the_machine_are_read_again_when_another_one_is_asked_for_later() -> None:
    now, names, reads = 0.0, OWN, 0

    def read() -> frozenset[str]:
        nonlocal reads
        reads += 1
        return names

    config = ServeConfig()
    hosts = AllowedHosts(lambda: config, read, lambda: now)
    assert hosts.allows(b"edge")
    names = frozenset({"renamed"})
    assert not hosts.allows(b"renamed")
    assert reads == 1
    now += 31
    assert hosts.allows(b"renamed")
    assert reads == 2


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://localhost:8080", "localhost:8080", True),
        ("http://edge", "edge", True),
        ("http://edge", "Edge:80", True),
        ("https://edge", "edge", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("https://proxy.example", "127.0.0.1:8080", True),
        ("https://a.fleet.example:444", "127.0.0.1:8080", True),
        ("http://localhost:3000", "localhost:8080", False),
        ("http://edge:8080", "edge", False),
        ("http://evil.example", "localhost:8080", False),
        ("http://192.0.2.6", "192.0.2.7", False),
        ("null", "localhost", False),
        ("", "localhost", False),
        ("file://", "localhost", False),
        ("chrome-extension://abc", "abc", False),
        ("http://", "", False),
        ("http://[", "localhost", False),
        ("http://localhost:99999", "localhost", False),
    ],
)
def test_origins(origin: str, host: str, same: bool) -> None:
    assert allowed("proxy.example", ".fleet.example").allows_origin(origin, host) is same
    assert allowed("*").allows_origin(origin, host)


async def hello(_: Request) -> Response:
    return JSONResponse({"hello": 1})


def test_a_page_of_another_site_may_only_ask_for_inference() -> None:
    refused: Counter[str] = Counter()
    refusals = Refusals(lambda reason: refused.update([reason]), call_later=lambda *_: None)
    paths = ("/", "/metrics", "/v2/models/m/infer", "/v2/models/m/versions/3/infer")
    middleware = [Middleware(SameSite, hosts=allowed(), refusals=refusals)]
    app: Any = Starlette(routes=[Route(path, hello, methods=["GET", "POST"]) for path in paths], middleware=middleware)

    async def statuses(app: Any, **headers: str) -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://edge", headers=headers) as client:
            return [(await client.post(path)).status_code for path in paths]

    async def main() -> None:
        assert await statuses(app) == [200] * 4
        assert await statuses(app, Origin="http://edge") == [200] * 4
        assert refused == {}
        assert await statuses(app, Origin="http://evil.example") == [403, 403, 200, 200]
        assert refused == {"origin": 2}
        assert await statuses(LocalOnly(app), Origin="http://evil.example") == [200] * 4

    asyncio.run(main())


def test_a_request_for_another_host_is_refused_before_it_is_routed() -> None:
    """Whether or not it would be answered by the application, and with or without a body."""

    async def main() -> None:
        asked = []

        def direct(scope: Any) -> None:
            asked.append(scope["path"])

        async with serving(Route("/", hello, methods=["GET", "POST"]), direct=direct, hosts=allowed()) as served:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}") as client:
                for method in ("GET", "POST"):
                    answer = await client.request(method, "/", headers={"Host": "evil.example"}, content=b"1" * 100)
                    assert answer.status_code == 421
                    assert "'evil.example'" in answer.json()["error"]
                    assert "serve.hosts" in answer.json()["error"]
                    assert answer.headers["connection"] == "close"
                assert asked == []
                assert (await client.post("/")).status_code == 200
                assert asked == ["/"]
            assert served.refused == {"host": 2}
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")  # no browser asks without a Host
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()

    asyncio.run(main())

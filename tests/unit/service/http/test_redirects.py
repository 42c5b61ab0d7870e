"""Redirects behind a proxy, resolved as a client does (RFC 3986)."""

from __future__ import annotations

import asyncio
from urllib.parse import urljoin

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from service.http.redirects import RelativeRedirects


async def path_of(request: Request) -> Response:
    return PlainTextResponse(request.url.path)


async def elsewhere(_: Request) -> Response:
    return RedirectResponse("/v2", headers={"x-kept": "1"})


APP = Starlette(
    routes=[
        Route("/v2", path_of),
        Route("/v2/models/{model}", path_of),
        Route("/folder/", path_of),
        Route("/elsewhere", elsewhere),
    ],
    middleware=[Middleware(RelativeRedirects)],
)


def get(target: str) -> httpx.Response:
    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=APP), base_url="http://inner:8080") as client:
            return await client.get(target)

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "location", "means"),
    [
        ("/v2/", "../v2", "/v2"),
        ("/v2/models/m/?a=1&b=%2F", "../m?a=1&b=%2F", "/v2/models/m?a=1&b=%2F"),
        ("/v2/models/a%3Ab%20c/", "../a:b%20c", "/v2/models/a:b%20c"),
        ("/folder?x=1", "./folder/?x=1", "/folder/?x=1"),
    ],
)
def test_a_redirect_keeps_scheme_host_and_prefix_of_a_proxy(asked: str, location: str, means: str) -> None:
    answer = get(asked)
    assert (answer.status_code, answer.headers["location"]) == (307, location)
    for front in ("https://edge.example", "https://edge.example/shelf"):
        assert urljoin(front + asked, answer.headers["location"]) == front + means


def test_other_responses_and_locations_without_a_host() -> None:
    assert (get("/v2").status_code, get("/v2").text) == (200, "/v2")
    assert get("/nowhere/").status_code == 404
    assert get("/v2//").headers["location"] == "/v2"
    own = get("/elsewhere")
    assert (own.headers["location"], own.headers["x-kept"]) == ("/v2", "1")

"""Redirects whose Location is relative, so that a proxy in front keeps its scheme, host and path."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class RelativeRedirects:
    """An application that redirects with relative locations.

    Starlette sends `/v2/` to `/v2` with an absolute URL, made of what it saw itself: behind a proxy that ends TLS, this
    would lead a client to plain HTTP.

    Args:
        app: Application that answers the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and make the Location of a redirect relative."""

        async def relative(message: Message) -> None:
            if message["type"] == "http.response.start" and 300 <= message["status"] < 400:
                message["headers"] = [
                    (name, _relative(value, scope["path"]) if name == b"location" else value)
                    for name, value in message["headers"]
                ]
            await send(message)

        await self._app(scope, receive, relative if scope["type"] == "http" else send)


def _relative(location: bytes, path: str) -> bytes:
    """Return an absolute URL of this server as seen from `path`."""
    target = urlsplit(location.decode("latin-1"))
    if not target.netloc:
        return location
    kept, _, last = target.path.rpartition("/")
    if path.endswith("//"):  # clients differ in how many folders these are
        relative = target.path
    elif last:  # the slash at the end was removed
        relative = f"../{last}"
    else:  # one was added
        relative = f"./{kept.rpartition('/')[2]}/"
    return (relative + (f"?{target.query}" if target.query else "")).encode("latin-1")

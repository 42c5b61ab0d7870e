"""Access control: by the permissions of the UNIX socket, and by tokens over TCP."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.daemon.tokens import Caller, Tokens

LOCAL = "edged.local"


class LocalOnly:
    """Marks requests that came through the UNIX socket: all users who can open it may administer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Mark a request and pass it on."""
        await self._app({**scope, LOCAL: True}, receive, send)


async def check_admin(request: Request, tokens: Tokens) -> None:
    """Allow administration through the UNIX socket, and over TCP with the administration token.

    Raises:
        AccessError: The token is wrong or missing, none is configured, or it cannot be read.
    """
    if not is_local(request):
        await tokens.require_admin(_caller(request))


async def check_inference(request: Request, tokens: Tokens) -> None:
    """Allow inference to all clients, unless a token is configured.

    Raises:
        AccessError: The token is wrong or missing, or it cannot be read.
    """
    if not is_local(request):
        await tokens.require_inference(_caller(request))


def allows_inference(request: Request, tokens: Tokens) -> bool:
    """Return whether inference is allowed, without slowing down clients with wrong tokens.

    Raises:
        AccessError: The token cannot be read.
    """
    return is_local(request) or tokens.allows_inference(_caller(request))


async def may_see_images(request: Request, tokens: Tokens) -> bool:
    """Return whether calibration images may be shown: through the UNIX socket, and over TCP with a token.

    The address of a TCP client proves nothing: behind a proxy, all clients connect from this machine.

    Raises:
        AccessError: A token cannot be read, or there are too many wrong ones.
    """
    return is_local(request) or await tokens.is_known(_caller(request))


def is_local(request: Request) -> bool:
    """Return whether a request came through the UNIX socket."""
    return bool(request.scope.get(LOCAL))


def _caller(request: Request) -> Caller:
    client = request.scope.get("client")
    return Caller(request.headers.get("authorization", ""), client[0] if client else "")

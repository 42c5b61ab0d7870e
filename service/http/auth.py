"""Access control: by the permissions of the UNIX socket, and by tokens over TCP."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from edged.errors import AccessError
from service.config.load import ServeConfig
from service.daemon.tokens import has_any_token, has_token, require_inference_token

LOCAL = "edged.local"


class LocalOnly:
    """Marks requests that came through the UNIX socket: all users who can open it may administer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Mark a request and pass it on."""
        await self._app({**scope, LOCAL: True}, receive, send)


def check_admin(request: Request, serve: ServeConfig) -> None:
    """Allow administration through the UNIX socket, and over TCP with the administration token.

    Raises:
        AccessError: The token is wrong or missing, none is configured, or it cannot be read.
    """
    if is_local(request):
        return
    if serve.admin_token is None:
        raise AccessError("this needs the UNIX socket; set serve.token_file to allow it over TCP")
    if not has_token(_authorization(request), serve.admin_token):
        raise AccessError("wrong or missing token; send 'Authorization: Bearer <contents of serve.token_file>'")


def check_inference(request: Request, serve: ServeConfig) -> None:
    """Allow inference to all clients, unless a token is configured.

    Raises:
        AccessError: The token is wrong or missing, or it cannot be read.
    """
    if serve.inference_token_file is not None and not is_local(request):
        require_inference_token(_authorization(request), serve)


def may_see_images(request: Request, serve: ServeConfig) -> bool:
    """Return whether calibration images may be shown: through the UNIX socket, and over TCP with a token.

    The address of a TCP client proves nothing: behind a proxy, all clients connect from this machine.

    Raises:
        AccessError: A token cannot be read.
    """
    return is_local(request) or has_any_token(_authorization(request), serve)


def is_local(request: Request) -> bool:
    """Return whether a request came through the UNIX socket."""
    return bool(request.scope.get(LOCAL))


def _authorization(request: Request) -> str:
    return request.headers.get("authorization", "")

"""Who may ask for what: whoever can open the UNIX socket, and whoever knows a token."""

from __future__ import annotations

import hmac
from pathlib import Path

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from edged.errors import AccessError
from service.config.load import ServeConfig

_LOCAL = "edged.local"


class LocalOnly:
    """Marks requests that came through the UNIX socket: whoever may open it may administer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        await self._app({**scope, _LOCAL: True}, receive, send)


def check_admin(request: Request, serve: ServeConfig) -> None:
    """Let through the UNIX socket, and whoever knows the token of administration.

    Raises:
        AccessError: Anybody else; or the token cannot be read.
    """
    if is_local(request):
        return
    if serve.admin_token is None:
        raise AccessError("this needs the UNIX socket; set serve.token_file to allow it over TCP")
    if not _knows(request, serve.admin_token):
        raise AccessError("wrong or missing token; send 'Authorization: Bearer <contents of serve.token_file>'")


def check_inference(request: Request, serve: ServeConfig) -> None:
    """Let through whoever may ask a model: everybody, unless a token is configured.

    Raises:
        AccessError: The token is wrong or missing; or it cannot be read.
    """
    if serve.inference_token_file is None or is_local(request):
        return
    if not _knows_any(request, serve):
        raise AccessError(
            "wrong or missing token; send 'Authorization: Bearer <contents of serve.inference_token_file>'"
        )


def may_see_images(request: Request, serve: ServeConfig) -> bool:
    """Whether calibration images may be shown: through the UNIX socket, over TCP to who knows a token.

    Who asks over TCP cannot be told: systemd may hold the port, and behind a proxy everybody comes from this machine.

    Raises:
        AccessError: A token cannot be read.
    """
    return is_local(request) or _knows_any(request, serve)


def is_local(request: Request) -> bool:
    """Whether a request came through the UNIX socket."""
    return bool(request.scope.get(_LOCAL))


def _knows_any(request: Request, serve: ServeConfig) -> bool:
    # Each is compared, so that the time does not tell which one nearly fits.
    files = (serve.inference_token_file, serve.admin_token)
    known = [_knows(request, file) for file in files if file is not None]
    return any(known)


def _knows(request: Request, file: Path) -> bool:
    # Read each time: a token that was changed counts at once.
    given = request.headers.get("authorization", "").encode()
    return hmac.compare_digest(given, f"Bearer {_token(file)}".encode())


def _token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"cannot read the token in {file}: {error}; make it a readable file of text") from error
    if not token:
        raise AccessError(f"the token file {file} is empty; write a secret into it")
    return token

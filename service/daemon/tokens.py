"""The tokens of administration and of inference, for all transports."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edged.errors import AccessError
from service.config.load import ServeConfig
from service.daemon.guesses import GuessError, Guesses

_SEND = "wrong or missing token; send 'Authorization: Bearer <contents of {}>'"


class Caller(NamedTuple):
    """Who makes a request.

    Attributes:
        authorization: Value of the request's `authorization` header; "" without one.
        address: IP address that it comes from.
    """

    authorization: str
    address: str


class Tokens:
    """Checks the tokens of requests. The right token is accepted at once; wrong ones are answered ever more slowly.

    Args:
        serve: Returns the section of the configuration in force.
        refused: Called for each wrong token that is not answered in its turn, because there are too many.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        serve: Callable[[], ServeConfig],
        refused: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._serve = serve
        self._refused = refused
        self._guesses = Guesses(clock)

    async def require_admin(self, caller: Caller) -> None:
        """Allow administration with its token.

        Raises:
            AccessError: The token is wrong or missing, none is configured, or it cannot be read.
        """
        file = self._serve().admin_token
        if file is None:
            raise AccessError("this needs the UNIX socket; set serve.token_file to allow it over TCP")
        if not _has_token(caller.authorization, file):
            await self._slow_down(caller)
            raise AccessError(_SEND.format("serve.token_file"))

    async def require_inference(self, caller: Caller) -> None:
        """Allow inference to all clients, unless a token is configured.

        Raises:
            AccessError: The token is wrong or missing, or it cannot be read.
        """
        if not self.allows_inference(caller):
            await self._slow_down(caller)
            raise AccessError(_SEND.format("serve.inference_token_file"))

    def allows_inference(self, caller: Caller) -> bool:
        """Return whether inference is allowed, without slowing anybody down.

        Raises:
            AccessError: A token cannot be read.
        """
        serve = self._serve()
        return serve.inference_token_file is None or _has_any_token(caller.authorization, serve)

    async def is_known(self, caller: Caller) -> bool:
        """Return whether a request has the token of inference or that of administration.

        Raises:
            AccessError: A token cannot be read, or there are too many wrong ones.
        """
        serve = self._serve()
        if serve.inference_token_file is None and serve.admin_token is None:
            return False  # at once: there is nothing to guess
        if _has_any_token(caller.authorization, serve):
            return True
        await self._slow_down(caller)
        return False

    async def _slow_down(self, caller: Caller) -> None:
        """Wait for the turn of the answer to a wrong token; a missing one is no guess."""
        if not caller.authorization:
            return
        try:
            await self._guesses.wait(caller.address)
        except GuessError:
            self._refused()
            raise


def _has_any_token(authorization: str, serve: ServeConfig) -> bool:
    # All tokens are compared, so that the time does not reveal which one nearly matches.
    files = (serve.inference_token_file, serve.admin_token)
    known = [_has_token(authorization, file) for file in files if file is not None]
    return any(known)


def _has_token(authorization: str, file: Path) -> bool:
    scheme, _, given = authorization.partition(" ")
    # Read for each request, so that a changed token applies at once.
    is_same = hmac.compare_digest(given.strip().encode(), _token(file).encode())
    return is_same and scheme.lower() == "bearer"


def _token(file: Path) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"cannot read the token in {file}: {error}; make it a readable file of text") from error
    if not token:
        raise AccessError(f"the token file {file} is empty; write a secret into it")
    return token

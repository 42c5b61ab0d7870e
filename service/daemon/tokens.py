"""The tokens of administration and of inference, for all transports."""

from __future__ import annotations

import hmac
from pathlib import Path

from edged.errors import AccessError
from service.config.load import ServeConfig


def require_inference_token(authorization: str, serve: ServeConfig) -> None:
    """Allow inference to all clients, unless a token is configured.

    Args:
        authorization: Value of the request's `authorization` header; "" without one.
        serve: Section of the configuration in force.

    Raises:
        AccessError: The token is wrong or missing, or it cannot be read.
    """
    if serve.inference_token_file is not None and not has_any_token(authorization, serve):
        raise AccessError(
            "wrong or missing token; send 'Authorization: Bearer <contents of serve.inference_token_file>'"
        )


def has_any_token(authorization: str, serve: ServeConfig) -> bool:
    """Return whether a request has the token of inference or that of administration.

    Raises:
        AccessError: A token cannot be read.
    """
    # All tokens are compared, so that the time does not reveal which one nearly matches.
    files = (serve.inference_token_file, serve.admin_token)
    known = [has_token(authorization, file) for file in files if file is not None]
    return any(known)


def has_token(authorization: str, file: Path) -> bool:
    """Return whether a request has the token in `file`.

    Raises:
        AccessError: The token cannot be read.
    """
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

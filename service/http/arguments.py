"""Arguments of an action: a small JSON object in the body of a request, or none."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http.bodies import read_body

_MAX_BYTES = 1 << 16


async def read_arguments(request: Request, example: str) -> dict[str, Any]:
    """Read the JSON object in the body of a request; an empty body has no arguments.

    Args:
        request: The request.
        example: A body that could be sent, for the message.

    Raises:
        HTTPException: 400, the body is no JSON object; 413, it is too large; others of `read_body`.
    """
    try:
        body = await read_body(request, _MAX_BYTES)
    except HTTPException as error:
        if error.status_code != 413:
            raise
        raise HTTPException(413, f"the body is over {_MAX_BYTES} bytes; send for example {example}") from None
    if not body.strip():
        return {}
    try:
        arguments = json.loads(body)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise HTTPException(400, f"the body has value {body!r:.80}; send a JSON object, for example {example}")
    return arguments

"""What an inference request says next to its body, for the generation, which reads it. Imports no numpy."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.ipc.messages import Form

JSON_BYTES = "Inference-Header-Content-Length"  # header of the binary tensor data extension
_MAX_BYTES = 4096  # of a query string or a header
_FILES = ("image/", "multipart/form-data")  # types of bodies that have no JSON


def has_files(request: Request) -> bool:
    """Return whether the body of a request is an image file, or a form with files, and none of the protocol."""
    return JSON_BYTES not in request.headers and request.headers.get("content-type", "").lower().startswith(_FILES)


def form_of(request: Request) -> Form | None:
    """Return what a request says next to its body; None if that is all as the protocol has it.

    Raises:
        HTTPException: 414, the query string is too long; 431, a header is.
    """
    query = request.scope["query_string"]
    accept = request.headers.get("accept", "")
    files = has_files(request)
    if not query and not files and "image/" not in accept.lower():
        return None
    if len(query) > _MAX_BYTES:
        raise HTTPException(414, f"the query string has {len(query)} bytes; send at most {_MAX_BYTES}")
    accept = ", ".join(request.headers.getlist("accept"))
    content_type = request.headers.get("content-type", "") if files else ""
    for name, value in (("Accept", accept), ("Content-Type", content_type)):
        if len(value) > _MAX_BYTES:
            raise HTTPException(431, f"{name} has {len(value)} bytes; send at most {_MAX_BYTES}")
    return Form(content_type, query.decode("latin-1"), accept)

"""uvicorn without an inference server: it reads the body and returns as many bytes as the logits have.

Usage: python bare.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn

ANSWER = bytes(4 * 10)


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve one request as an ASGI application."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), http="httptools", access_log=False, log_level="warning")

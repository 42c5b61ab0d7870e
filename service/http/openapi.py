"""The OpenAPI document of the routes. It is kept by hand in openapi.yaml, and read only once it is asked for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edged.version import __version__

_SOURCE = Path(__file__).with_name("openapi.yaml")
_SHARED = "x-shared"  # anchors that the paths refer to


def document() -> dict[str, Any]:
    """Return the OpenAPI document as JSON types, with the version of edged."""
    # libyaml's parser is ten times as fast; some builds of PyYAML lack it. Both build plain data only.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(_SOURCE.read_bytes(), loader)  # noqa: S506 - a safe loader
    del found[_SHARED]
    found["info"]["version"] = __version__
    return found


class OpenApiRoutes:
    """Handler of the document."""

    def __init__(self) -> None:
        self._text = b""

    @property
    def routes(self) -> list[Route]:
        """Routes for the application."""
        return [Route("/openapi.json", self.document)]

    async def document(self, _: Request) -> Response:
        """GET /openapi.json."""
        if not self._text:
            self._text = await asyncio.to_thread(_as_json)
        return Response(self._text, media_type="application/json")


def _as_json() -> bytes:
    return json.dumps(document(), separators=(",", ":")).encode()

"""What the protocol's servers may have and edged has not, so that a client is told more than "Not Found"."""

from __future__ import annotations

import re

from service.daemon.model_repository import without_extension

_MODEL = r"/v2/models/[^/]+(/versions/[^/]+)?"
# The first pattern that matches a path applies.
_MISSING = {
    rf"(/v2|{_MODEL})/trace/setting": "trace",
    r"/v2/logging": "logging",
    r"/v2/systemsharedmemory(/.*)?": "system_shared_memory",
    r"/v2/cudasharedmemory(/.*)?": "cuda_shared_memory",
    rf"{_MODEL}/generate(_stream)?": "generate",
}


def explain(method: str, path: str) -> str | None:
    """Return which extension of the protocol a path belongs to that edged lacks; None if it belongs to none."""
    for pattern, extension in _MISSING.items():
        if re.fullmatch(pattern, path):
            return without_extension(f"{method} {path}", extension)
    return None

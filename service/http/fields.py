"""The header fields of a request, found by name at once. Starlette searches all of them for each name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope


class FieldIndex(Headers):
    """Header fields with an index of their names. Of several fields with one name, the first counts, as in Headers.

    Args:
        raw: Names in lower case, and values.
    """

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(raw=list(raw))
        self._first = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(raw)}

    def __getitem__(self, key: str) -> str:
        return self._first[key.lower()]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.lower() in self._first

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a field, or the default if there is none."""
        return self._first.get(key.lower(), default)


class IndexedRequest(Request):
    """A request with indexed header fields.

    Args:
        scope: Scope of the request.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self._index = FieldIndex(scope["headers"])

    @property
    def headers(self) -> Headers:
        """The header fields."""
        return self._index

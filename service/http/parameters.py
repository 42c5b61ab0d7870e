"""Values of a path or a query: each is bounded before anything is done with it."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

from edged.errors import UsageError

_MAX_DIGITS = 15  # SQLite has 18, and Python refuses to read thousands of them
MAX_NUMBER = 10**_MAX_DIGITS - 1


class ParameterError(UsageError):
    """A value of a request is impossible, so it is not to be looked up."""


class _Whole(Convertor[int]):
    """A number in a path: `{id:whole}`. There is nothing at larger ones."""

    regex = f"[0-9]{{1,{_MAX_DIGITS}}}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("whole", _Whole())


def whole_number(request: Request, key: str, default: int, least: int = 0, most: int = MAX_NUMBER) -> int:
    """Return a whole number of the query.

    Raises:
        ParameterError: It is none, or out of range.
    """
    text = request.query_params.get(key)
    if text is None:
        return default
    if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS and least <= int(text) <= most:
        return int(text)
    raise ParameterError(f"{key} has value {text!r:.80}; choose {least} to {most}")


def flag(request: Request, key: str) -> bool:
    """Return a truth value of the query, false by default.

    Raises:
        ParameterError: It is neither true nor false.
    """
    text = request.query_params.get(key, "false")
    if text not in ("true", "false"):
        raise ParameterError(f"{key} has value {text!r:.80}; choose true or false")
    return text == "true"

"""The HTTP status of each error: what metrics count, whichever transport a request came by."""

from __future__ import annotations

from collections.abc import Mapping

from edged.errors import AccessError, EdgedError, NotReadyError, RejectedError, StateError, UsageError
from service.daemon.guesses import GuessError
from service.daemon.model_repository import LoadError
from service.serving.channel import BusyError, DeadlineError, ServingError

# The first class that matches applies, so subclasses precede their base.
_STATUS: Mapping[type[EdgedError], int] = {
    BusyError: 429,
    DeadlineError: 504,
    ServingError: 503,
    UsageError: 404,
    LoadError: 400,
    GuessError: 429,
    AccessError: 403,
    NotReadyError: 409,
    StateError: 503,
    RejectedError: 422,
}


def status_of_error(error: BaseException) -> int:
    """Return the HTTP status of an error; 500 for one that is not expected."""
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)

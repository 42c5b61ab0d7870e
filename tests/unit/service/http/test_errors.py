"""The status of each error."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from edged.errors import AccessError, EdgedError, GateError, PinnedError, UsageError
from service.http.errors import status_of
from service.serving.channel import BusyError, DeadlineError, NotStartedError, ServingError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (HTTPException(413, "too large"), 413),
        (BusyError("full"), 429),
        (DeadlineError("late"), 504),
        (NotStartedError("gone"), 503),
        (ServingError("gone"), 503),
        (UsageError("unknown"), 404),
        (AccessError("forbidden"), 403),
        (PinnedError("pinned"), 409),
        (GateError("worse"), 422),
        (EdgedError("internal"), 500),
        (ValueError("a mistake"), 500),
    ],
)
def test_the_status_of_each_error(error: Exception, status: int) -> None:
    assert status_of(error) == status

"""How an update that cannot go on says so."""

from __future__ import annotations

from service.worker.process import Failure


class StoppedError(Exception):
    """The update cannot go on; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class RolledBackError(StoppedError):
    """The update was live and is not any more; the journal says so already."""

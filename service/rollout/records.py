"""Where the progress of updates is recorded."""

from __future__ import annotations

from dataclasses import dataclass

from service.journal.repository import UpdateRepository
from service.metrics.registry import Metrics
from service.reporting.files import Reports


@dataclass(frozen=True)
class UpdateRecords:
    """The three records of an update's progress, which are written together.

    Attributes:
        updates: The journal.
        metrics: Metrics of the daemon.
        reports: Reports for people.
    """

    updates: UpdateRepository
    metrics: Metrics
    reports: Reports

"""The parts of the daemon that carry out the steps of an update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.rollout.probation import Probation
from service.rollout.records import UpdateRecords
from service.rollout.rollback import Rollbacks
from service.rollout.swap import Swapper
from service.updates.admission import Admission
from service.updates.files import UpdateFiles
from service.updates.workers import Workers


@dataclass(frozen=True)
class UpdateSteps:
    """One part for each step of an update, in the order of the steps.

    Attributes:
        admission: Admits the update to the worker.
        workers: Quantizes the claimed file.
        files: Holds the claimed file and the worker's result.
        swapper: Publishes through its generations, and puts a generation in service.
        rollbacks: Knows whether the generation was taken out of service again.
        probation: Watches the live generation.
        records: Journal, metrics and reports.
        state_problem: Returns why nothing can be kept in the state folder now; None if it can. May block.
    """

    admission: Admission
    workers: Workers
    files: UpdateFiles
    swapper: Swapper
    rollbacks: Rollbacks
    probation: Probation
    records: UpdateRecords
    state_problem: Callable[[], str | None]

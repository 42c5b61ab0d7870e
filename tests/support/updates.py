"""What drives updates, without models in service."""

from __future__ import annotations

from service.config.current import CurrentConfig
from service.config.load import Config
from service.journal.holds import Holds
from service.journal.repository import UpdateRepository
from service.metrics.registry import Metrics
from service.reporting.files import Reports
from service.rollout.probation import Probation
from service.rollout.records import UpdateRecords
from service.rollout.rollback import Rollbacks
from service.rollout.swap import Swapper
from service.storage.generations import GenerationRepository
from service.storage.state_folder import StateFolder
from service.system.device_state import DeviceState
from service.system.disk_thread import Disk
from service.system.liveness import Liveness
from service.updates.admission import Admission
from service.updates.files import UpdateFiles
from service.updates.runner import UpdateRunner
from service.updates.steps import UpdateSteps
from service.updates.workers import Workers


def runner_of(config: Config, folder: StateFolder, disk: Disk, metrics: Metrics, device: DeviceState) -> UpdateRunner:
    """Return a runner on a state folder; no model is in service."""
    current = CurrentConfig(config)
    updates = UpdateRepository(folder.journal, disk, folder.store, current)
    records = UpdateRecords(updates, metrics, Reports(folder, disk))
    swapper = Swapper({}, GenerationRepository(folder.store, disk), Holds(folder.journal, disk), metrics)
    rollbacks = Rollbacks(swapper, records, current)
    files = UpdateFiles(folder, disk)
    steps = UpdateSteps(
        admission=Admission(current, folder, disk, device),
        workers=Workers(current, files, Liveness()),
        files=files,
        swapper=swapper,
        rollbacks=rollbacks,
        probation=Probation(rollbacks, records),
        records=records,
        state_problem=folder.identity.problem,
    )
    return UpdateRunner(current, steps)

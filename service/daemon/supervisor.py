"""The supervisor: serves published generations, resumes interrupted updates, and takes dropped files.

The only writer of the state folder. Imports no torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from edged.errors import StateError
from edged.version import __version__
from service.config.current import CurrentConfig
from service.config.load import Config
from service.daemon.admin import Administration
from service.daemon.collector import GarbageCollector
from service.daemon.device_summary import device_summary
from service.daemon.environment import Environment
from service.daemon.gauges import Gauges
from service.daemon.housekeeping import Housekeeping
from service.daemon.model_registry import ModelRegistry
from service.daemon.model_repository import ModelRepository
from service.daemon.queries import Queries
from service.daemon.state_watch import StateWatch
from service.daemon.status_line import status_line
from service.daemon.tokens import Tokens
from service.daemon.update_actions import UpdateActions
from service.intake.claim_queue import ClaimListener, ClaimQueue
from service.intake.drop_folder import DropFolder
from service.intake.orphans import give_back
from service.intake.unclaimed import KINDS
from service.intake.watcher import Watcher, WatchOptions
from service.ipc.shared_memory import BodyMemory
from service.journal.holds import Holds
from service.journal.repository import UpdateRepository
from service.journal.states import State
from service.metrics.registry import Metrics
from service.reporting.files import Reports
from service.rollout.probation import Probation
from service.rollout.records import UpdateRecords
from service.rollout.recovery import Recovery
from service.rollout.rollback import Rollbacks
from service.rollout.swap import Swapper
from service.serving.model_server import ModelServer
from service.storage.generations import GenerationRepository
from service.storage.leftovers import sweep
from service.storage.scrub import Scrub
from service.storage.state_folder import StateFolder
from service.system.device_state import DeviceState
from service.system.disk_thread import Disk
from service.system.processes import resident_bytes
from service.system.timeouts import within
from service.units import iso_time
from service.updates.admission import Admission
from service.updates.checkpoints import KeptCheckpoints
from service.updates.files import UpdateFiles
from service.updates.runner import UpdateRunner
from service.updates.steps import UpdateSteps
from service.updates.workers import Workers
from service.worker.hold_back import HoldBack

log = logging.getLogger(__name__)

_DROP_FOLDER_S = 10.0  # a folder that takes longer to answer does not keep the models from being served
_LAST_UPDATES = 20
_CHECKSUM_WAIT = 30  # times settle_s, for the checksum that follows a file


class Supervisor:
    """The daemon without its HTTP server. Its constructor wires the parts; `start` and `stop` run them.

    Args:
        config: Configuration at startup.
        folder: Open state folder.
        disk: Thread for disk work.
        metrics: Metrics of the daemon.
        environment: Connections to the system.

    Attributes:
        address: URL under which the daemon answers.
        grpc_address: HOST:PORT under which it answers gRPC; None without it.
        log_ring: The last lines of the log.
        metrics: Metrics of the daemon.
        servers: Servers of the configured models, by name.
        tokens: Checks the tokens of requests.
        queries: Reads for the HTTP routes.
        repository: The models as clients of the protocol see them.
        administration: Actions of an operator on a model.
        update_actions: Actions of an operator on an update.
        garbage: Collector of what is not needed any more.
        gauges: Source of /metrics.
    """

    def __init__(
        self, config: Config, folder: StateFolder, disk: Disk, metrics: Metrics, environment: Environment
    ) -> None:
        self.address = environment.address
        self.grpc_address: str | None = None
        self.log_ring = environment.log_ring
        self.metrics = metrics
        self.servers: dict[str, ModelServer] = {}
        self._config = CurrentConfig(config)
        self.tokens = Tokens(lambda: self.config.serve, lambda: metrics.count_http_refusal("token"))
        self._folder = folder
        self._disk = disk
        self._environment = environment
        self._wire_updates()
        liveness, records = environment.liveness, self._records
        requested = self._workers.hold_back.note_request
        self._models = ModelRegistry(
            self._config, self.servers, folder, records, self._runner, self._recovery, liveness, requested
        )
        listener = ClaimListener(
            claimed=self._models.offer,
            not_settled=lambda drop: self._watcher.release(drop.path),
            given_back=lambda found, reason: self._watcher.give_back(found, reason),
            truncated=self._runner.reject_truncated,
        )
        problem = folder.identity.problem
        self._intake = ClaimQueue(self._config, folder.paths.claimed, records, self._holds, listener, liveness, problem)
        self.queries = Queries(self._models, self._swapper, self._recovery, self._runner, self._intake, records)
        self.repository = ModelRepository(self.servers, self._swapper.generations)
        self.administration = Administration(self._swapper, self._rollbacks, self._intake)
        self.update_actions = UpdateActions(self._config, self._models, self._runner, records, self._files)
        refresh = self._recovery.refresh
        self.garbage = GarbageCollector(self._config, folder, disk, self._admission.lock, metrics, refresh)
        self.gauges = Gauges(
            self._config, self._models, self._holds, self._workers.running, self._runner.turns.waiting, metrics
        )
        scrub = Scrub(self._swapper.generations, disk, self._is_idle)
        self._housekeeping = Housekeeping(self._config, folder, disk, self.servers, scrub, self._recovery)
        self._housekeeping_task: asyncio.Task[None] | None = None
        self._watcher = self._make_watcher()
        self._started_at = time.time()
        self._booted = False
        self._stopping = False
        for model in config.models:  # before the first request, which is answered with 503 until it is served
            self._models.register(model.name)

    def _wire_updates(self) -> None:
        """Wire what takes an update from its claimed file into service."""
        config, folder, disk = self._config, self._folder, self._disk
        updates = UpdateRepository(folder.journal, disk, folder.store, config, folder.ages.now)
        self._records = UpdateRecords(updates, self.metrics, Reports(folder, disk))
        self._holds = Holds(folder.journal, disk)
        self._state_watch = StateWatch(folder, disk, self._holds, self.metrics)
        self._looking: asyncio.Task[None] | None = None
        generations = GenerationRepository(folder.store, disk)
        self._swapper = Swapper(self.servers, generations, self._holds, self.metrics)
        self._rollbacks = Rollbacks(self._swapper, self._records, config)
        self._files = files = UpdateFiles(folder, disk)
        self._checkpoints = KeptCheckpoints(config, folder, disk, files)
        self._recovery = Recovery(
            self._swapper, self._rollbacks, self._records, self._checkpoints, folder.identity.problem
        )
        self._admission = Admission(config, folder, disk, DeviceState())
        hold_back = HoldBack(self.metrics.note_held_back)
        self._workers = Workers(config, files, self._environment.liveness, hold_back, self.metrics.note_sandbox)
        steps = UpdateSteps(
            admission=self._admission,
            workers=self._workers,
            files=files,
            swapper=self._swapper,
            rollbacks=self._rollbacks,
            probation=Probation(self._rollbacks, self._records),
            records=self._records,
            state_problem=folder.identity.problem,
        )
        self._runner = UpdateRunner(config, steps)

    @classmethod
    async def open(cls, config: Config, metrics: Metrics, environment: Environment | None = None) -> Supervisor:
        """Open the state folder, and return its supervisor.

        Raises:
            StateError: The state folder cannot be written.
        """
        environment = environment or Environment()
        disk = Disk(environment.liveness)
        return cls(config, await disk(StateFolder.open, config.state_dir), disk, metrics, environment)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config.current

    @property
    def body_memory(self) -> BodyMemory:
        """Memory for the bodies of requests, which all generations can read."""
        return self._models.body_memory

    @property
    def ready(self) -> bool:
        """Whether every model that has a generation answers; false from the moment a stop is requested."""
        return self._booted and not self._stopping and all(server.ready for server in self.servers.values())

    async def start(self) -> None:
        """Serve what was published, then resume what was interrupted, then take what is dropped.

        Raises:
            EdgedError: The state folder or the drop folder cannot be used.
        """
        await self._make_drop_folder(self.config)
        await self._disk(sweep, self._folder.paths)
        await self._holds.load()
        self._workers.report_sandbox()
        for model in self.config.models:
            await self._models.serve(model.name)
        self.gauges.show_history(await self._records.updates.last_times())
        housekeeping = self._housekeeping.run(self._environment.liveness, self._report_status)
        self._housekeeping_task = asyncio.create_task(housekeeping)
        for name in self.servers:
            await self._rollbacks.reconcile(name)  # a stop may have kept a rollback from being journaled
        await self._models.first_tries()
        self._booted = True
        await self._files.recover()
        await asyncio.to_thread(self._give_back_orphans)
        await self._records.updates.forget_expired()
        for name in self.servers:
            await self._models.resume(name)
        self._checkpoints.offer = self._models.offer
        await self._watcher.start()

    def status_line(self) -> str:
        """Return one line on the state of the daemon, for the service manager."""
        phase = "stopping" if self._stopping else None if self._booted else "starting"
        watching = self._watcher.up or not self._watcher.looked
        line = status_line(phase, self.servers, self._models.queues, self._runner.progress, watching)
        return line if self._state_watch.problem is None else f"{self._state_watch.problem}; {line}"

    def _report_status(self) -> None:
        self._environment.report_status(self.status_line())

    def begin_stop(self) -> None:
        """Report not ready from now on, so that clients go elsewhere."""
        self._stopping = True

    async def stop(self) -> None:
        """Shut everything down in the order of its dependence: intake, updates, serving, journal."""
        self.begin_stop()
        await self._watcher.stop()
        if self._looking is not None:
            await asyncio.wait({self._looking})
        await self._intake.close()
        if self._housekeeping_task is not None:
            self._housekeeping_task.cancel()
        await self._models.close()
        await self._records.updates.close()
        self._disk.close()

    async def reload(self, config: Config) -> list[str]:
        """Put a new configuration in force. Models are added and removed; all others keep serving.

        Returns:
            The changed keys that only a restart applies.

        Raises:
            StateError: The new drop folder cannot be created.
        """
        await self._make_drop_folder(config)
        before, self._config.current = self.config, config
        names = [model.name for model in config.models]
        for name in [name for name in self.servers if name not in names]:
            log.info("model %s is not configured any more", name)
            await self._models.remove(name)
        self._models.reconfigure()
        for name in [name for name in names if name not in self.servers]:
            log.info("model %s is new", name)
            self._models.register(name)
            await self._models.serve(name)
            await self._models.resume(name)
        await self._housekeeping.delete_expired()
        await self._watcher.stop()
        self._watcher = self._make_watcher()
        await self._watcher.start()
        for queue in self._models.queues.values():
            if queue.active is not None and queue.active.id in self._runner.postponed:
                queue.recheck()  # the condition that it waits for may have been reconfigured
        fixed: dict[str, Callable[[Config], object]] = {
            "state_dir": lambda c: c.state_dir,
            "serve.host": lambda c: c.serve.host,
            "serve.port": lambda c: c.serve.port,
            "serve.grpc_port": lambda c: c.serve.grpc_port,
            "serve.max_body_bytes for gRPC": lambda c: c.serve.grpc_port and c.serve.max_body_bytes,
            "serve.max_arriving_bytes for gRPC": lambda c: c.serve.grpc_port and c.serve.max_arriving_bytes,
            "serve.socket": lambda c: c.serve.socket,
            "serve.max_connections": lambda c: c.serve.max_connections,
        }
        changed = [key for key, value in fixed.items() if value(before) != value(config)]
        if not self._models.set_body_bytes(config.serve.arriving_bytes):
            changed.append(
                f"serve.{'max_body_bytes' if config.serve.max_arriving_bytes is None else 'max_arriving_bytes'}"
            )
        return changed

    async def status(self) -> dict[str, Any]:
        """Return an overview of the daemon as JSON types."""
        return {
            "ready": self.ready,
            "version": __version__,
            "host": platform.node(),
            "started_at": iso_time(self._started_at),
            "state_dir": str(self._folder.paths.root),
            "drop_dir": str(self.config.drop_folder),
            "require_checksum": self.config.drop.require_checksum,
            "address": self.address,
            "grpc_address": self.grpc_address,
            "rss_bytes": resident_bytes(os.getpid()),
            "watching": self._watcher.up,
            "state_problems": self._state_watch.problems,
            "unclaimed": self._watcher.unclaimed,
            "models": await self.queries.models(),
            "updates": await self.queries.open_updates(),
            "queue": await self.queries.queue(),
        }

    async def overview(self) -> dict[str, Any]:
        """Return `status` with the details of each model, the state of the device, and the last updates.

        The updates that have not ended are under "open"; those under "updates" are the last ones, ended or not.
        """
        status = await self.status()
        return {
            **status,
            "open": status["updates"],
            "models": await self.queries.detailed_models(self._housekeeping.samples),
            "updates": await self.queries.updates(None, None, _LAST_UPDATES),
            "device": await self._disk(device_summary, self._folder.paths.root),
        }

    def require_model(self, name: str) -> None:
        """Check that a model is configured.

        Raises:
            UsageError: It is not.
        """
        self._swapper.server(name)

    def _is_idle(self) -> bool:
        """Whether nothing is quantized, and the state folder is there."""
        if self._state_watch.problem is not None:
            return False
        return not self._workers.running and not self._admission.lock.locked()

    def _give_back_orphans(self) -> None:
        """Give claimed files back that no update knows of: the journal was lost, or a crash came before it."""
        journal, models = self._folder.journal, [model.name for model in self.config.models]

        def is_known(sha256: str) -> bool:
            update = journal.last_of_file(sha256)
            return update is not None and update.state in State.__members__.values()

        try:
            give_back(self._folder.paths.claimed, self.config.drop_folder, models, is_known)
        except (OSError, StateError) as error:
            log.error("cannot look for claimed files without an update: %s", error)

    def _make_watcher(self) -> Watcher:
        watch = self.config.watch
        return Watcher(
            _drop_folder(self.config),
            WatchOptions(
                watch.settle_s,
                watch.rescan_s,
                watch.mode,
                settle_max_s=watch.settle_max_s,
                checksum_wait_s=_checksum_wait_s(self.config),
                signature_wait_s={model.name: model.trust.wait_s for model in self.config.models if model.trust.keys},
            ),
            on_found=self._intake.put,
            on_health=self._show_drop_folder,
            on_rebuilt=self.metrics.watch_rebuilds.inc,
            liveness=self._environment.liveness,
        )

    def _show_drop_folder(self, up: bool) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_at_state())
        self.metrics.watch_up.set(up)
        kinds = Counter(entry["kind"] for entry in self._watcher.unclaimed)
        for kind in KINDS:
            self.metrics.drop_unclaimed.labels(kind).set(kinds[kind])

    async def _look_at_state(self) -> None:
        """Look whether the state folder is still there; what had to wait for it goes on."""
        try:
            before = self._state_watch.problem
            if await self._state_watch.look():
                for queue in self._models.queues.values():
                    queue.recheck()
            if self._state_watch.problem != before:
                self._report_status()
        except StateError as error:
            log.error("the state folder cannot be checked: %s", error)

    async def _make_drop_folder(self, config: Config) -> None:
        """Create the drop folder before the daemon reports ready: clients may drop files from then on."""
        try:
            await within(_DROP_FOLDER_S, asyncio.to_thread(_drop_folder(config).make))
        except asyncio.TimeoutError:
            log.error(
                "drop_dir %s does not answer; models are served, and it is scanned once it does", config.drop_folder
            )
        except OSError as error:
            reason = error.strerror or error
            raise StateError(
                f"cannot create drop_dir {config.drop_folder}: {reason}; create it or change it"
            ) from error


def _checksum_wait_s(config: Config) -> float:
    """Return the seconds that a file waits for its checksum; 0 if it needs none."""
    watch = config.watch
    return min(watch.settle_max_s, _CHECKSUM_WAIT * watch.settle_s) if config.drop.require_checksum else 0.0


def _drop_folder(config: Config) -> DropFolder:
    return DropFolder(config.drop_folder, [model.name for model in config.models], config.watch.max_bytes)

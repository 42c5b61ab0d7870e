"""What the parts of the supervisor share."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from edged.artifacts.store import ModelStore
from edged.errors import StateError, UsageError
from service.config.load import Config
from service.journal.holds import Holds
from service.journal.states import State, is_end
from service.journal.store import Journal, Update
from service.metrics.registry import Metrics
from service.serving.fork_client import ForkServer
from service.serving.model_server import ModelServer
from service.storage.paths import CLAIMED_NAME, Paths
from service.system.device_state import DeviceState
from service.system.disk_thread import Disk
from service.system.liveness import Liveness
from service.worker.lock import WorkerLock
from service.worker.process import WorkerProcess

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Context:
    """What the supervisor owns. Everything but `config` stays for its whole life.

    Attributes:
        config: The configuration in force.
        paths: Of the state folder.
        journal: The history; touched only through `disk`.
        store: Published generations.
        metrics: Of this daemon.
        disk: The thread for disk work.
        device: How it is.
        holds: Pinned and paused models.
        fork_server: What the processes of all generations are forked from.
        servers: By model name.
        worker_lock: Parked by the one worker that may run; the highest priority gets it next.
        workers: By model name: those that run.
        liveness: What the loops promise.
    """

    config: Config
    paths: Paths
    journal: Journal
    store: ModelStore
    metrics: Metrics
    disk: Disk
    device: DeviceState = field(default_factory=DeviceState)
    holds: Holds = field(init=False)
    fork_server: ForkServer = field(default_factory=ForkServer)
    servers: dict[str, ModelServer] = field(default_factory=dict)
    worker_lock: WorkerLock = field(default_factory=WorkerLock)
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    liveness: Liveness = field(default_factory=Liveness)

    def __post_init__(self) -> None:
        self.holds = Holds(self.journal, self.disk)

    def require_model(self, name: str) -> None:
        """Check that there is such a model.

        Raises:
            UsageError: There is none.
        """
        if name not in self.servers:
            raise UsageError(f"no model {name!r:.80}; configured: {', '.join(self.servers) or 'none'}")

    def claimed_file(self, update: Update) -> Path:
        """Where the dropped file of `update` lies while it is worked on."""
        return self.paths.claimed / (update.sha256 or "none") / CLAIMED_NAME

    def staged(self, update: Update) -> Path:
        """Where the worker of `update` writes its artifact."""
        return self.paths.staging / str(update.id)

    def shares_claim(self, update: Update) -> bool:
        """Whether another open update still needs the same claimed file."""
        return any(o.id != update.id and o.sha256 == update.sha256 for o in self.journal.open_updates())

    def keep_current(self, model: str) -> None:
        """After a switch that failed: have the generation that is current on disk serve again, if none does."""
        service = self.servers[model]
        current = self.store.current(model)
        if service.live is None and current is not None:
            service.keep(current)

    async def advance(self, update: int, state: State, **fields: Any) -> Update:
        """Journal a step; with an end, what is too old to be told goes."""
        advanced = await self.disk(self.journal.advance, update, state, **fields)
        if is_end(state):
            await self.forget_the_past()
        return advanced

    async def forget_the_past(self) -> None:
        """Remove ended updates beyond `history` from the journal, unless a generation on the disk is theirs.

        What keeps it from that is told in the log: the update that has ended just now has ended all the same.
        """
        history = self.config.history
        oldest = time.time() - history.max_age_days * 86400
        try:
            await self.disk(self._forget, history.max_updates, oldest)
        except (StateError, OSError) as error:
            log.warning("cannot remove old updates from the journal: %s; it is tried again with the next one", error)

    def _forget(self, most: int, oldest: float) -> None:
        kept = {(model, number) for model in self.store.models() for number in self.store.generations(model)}
        self.journal.forget(most, oldest, kept)

    async def get(self, update: int) -> Update:
        """An update as journaled.

        Raises:
            UsageError: There is none.
        """
        found = await self.disk(self.journal.get, update)
        if found is None:
            raise UsageError(f"no update {update}; `edged history` lists them")
        return found

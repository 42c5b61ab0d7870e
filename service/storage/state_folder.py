"""Access to the state folder for code that runs in the disk thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edged.artifacts.store import ModelStore
from service.journal.copies import Copies
from service.journal.states import State
from service.journal.store import Journal
from service.journal.update import Update
from service.storage.identity import StateIdentity
from service.storage.paths import CLAIMED_NAME, Paths
from service.system.age_clock import AgeClock


@dataclass(frozen=True)
class StateFolder:
    """An open state folder. Its members may wait for the disk: use them in the disk thread.

    Attributes:
        paths: Locations in the state folder.
        store: Published generations.
        journal: History of the updates.
        identity: Tells whether the folder is still the one that was opened.
        ages: Clock by which it is judged what has expired.
    """

    paths: Paths
    store: ModelStore
    journal: Journal
    identity: StateIdentity
    ages: AgeClock = field(default_factory=AgeClock)

    @classmethod
    def open(cls, root: Path) -> StateFolder:
        """Open the state folder `root`.

        Raises:
            StateError: The journal cannot be opened or created.
        """
        paths = Paths(root)
        store = ModelStore(paths.models)
        used = any(store.generations(model) for model in store.models())
        identity = StateIdentity(paths)
        copies = Copies(paths.copies, identity.problem)
        journal = Journal(paths.journal, copies=copies, expected=used)
        return cls(paths, store, journal, identity, AgeClock(journal.last_time()))

    def claimed_file(self, update: Update) -> Path:
        """Return where the dropped file of `update` is stored while the update is open."""
        return self.paths.claimed / (update.sha256 or "none") / CLAIMED_NAME

    def kept(self, state: State, sha256: str) -> Path:
        """Return the folder that keeps the file of an update that ended in `state` without being served."""
        abandoned = state in (State.SUPERSEDED, State.CANCELLED)
        return (self.paths.superseded if abandoned else self.paths.rejected) / sha256

    def kept_file(self, update: Update) -> Path | None:
        """Return where the file of an ended update is kept; None if it is not."""
        if update.sha256 is None:
            return None
        places = (self.kept(update.state, update.sha256), *(root / update.sha256 for root in self._kept_roots))
        return next((place / CLAIMED_NAME for place in places if (place / CLAIMED_NAME).is_file()), None)

    @property
    def _kept_roots(self) -> tuple[Path, ...]:
        return self.paths.superseded, self.paths.rejected, self.paths.claimed

    def staged(self, update: Update) -> Path:
        """Return the folder in which the worker of `update` writes its artifact."""
        return self.paths.staged(update.id)

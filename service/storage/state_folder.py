"""Access to the state folder for code that runs in the disk thread."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.artifacts.store import ModelStore
from service.journal.store import Journal
from service.journal.update import Update
from service.storage.paths import CLAIMED_NAME, Paths


@dataclass(frozen=True)
class StateFolder:
    """An open state folder. Its members may wait for the disk: use them in the disk thread.

    Attributes:
        paths: Locations in the state folder.
        store: Published generations.
        journal: History of the updates.
    """

    paths: Paths
    store: ModelStore
    journal: Journal

    @classmethod
    def open(cls, root: Path) -> StateFolder:
        """Open the state folder `root`.

        Raises:
            StateError: The journal cannot be opened or created.
        """
        paths = Paths(root)
        return cls(paths, ModelStore(paths.models), Journal(paths.journal))

    def claimed_file(self, update: Update) -> Path:
        """Return where the dropped file of `update` is stored while the update is open."""
        return self.paths.claimed / (update.sha256 or "none") / CLAIMED_NAME

    def staged(self, update: Update) -> Path:
        """Return the folder in which the worker of `update` writes its artifact."""
        return self.paths.staging / str(update.id)

"""Locations in the state folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.errors import StateError

CLAIMED_NAME = "file"  # as in rejected/<sha256>/file
ORIGIN_NAME = "origin.json"  # next to a claimed file: model and name, by which a file without an update is given back


@dataclass(frozen=True)
class Paths:
    """Paths of everything in the state folder.

    Attributes:
        root: The state folder, state_dir in the config.
    """

    root: Path

    @property
    def claimed(self) -> Path:
        """Claimed files of open updates: <sha256>/{file,origin.json}."""
        return self.root / "claimed"

    @property
    def staging(self) -> Path:
        """Folders that workers write to: <update id>/, see `workplace`."""
        return self.root / "staging"

    def workplace(self, update_id: int) -> Path:
        """Return the folder of an update that only its worker writes to: artifact/ and temporary files."""
        return self.staging / str(update_id)

    def staged(self, update_id: int) -> Path:
        """Return the folder in which the worker of an update writes its artifact."""
        return self.workplace(update_id) / "artifact"

    @property
    def rejected(self) -> Path:
        """Rejected files: <sha256>/{file,reason.json}."""
        return self.root / "rejected"

    @property
    def superseded(self) -> Path:
        """Files of superseded and cancelled updates: <sha256>/{file,reason.json}."""
        return self.root / "superseded"

    @property
    def models(self) -> Path:
        """Published generations, see edged.artifacts.store."""
        return self.root / "models"

    @property
    def journal(self) -> Path:
        """Database with the history of the updates."""
        return self.root / "journal.db"

    @property
    def copies(self) -> Path:
        """Second copy of what the journal decides by: <model>.json, see service.journal.copies."""
        return self.root / "copies"

    @property
    def lock(self) -> Path:
        """Lock file, locked by the one daemon that may write to the state folder."""
        return self.root / "lock"

    @property
    def calibrations(self) -> Path:
        """Decoded calibration images: <model>/<digest>/."""
        return self.root / "calib"

    def calibration(self, model: str) -> Path:
        """Return the folder of the decoded calibration images of a model."""
        return self.calibrations / model

    @property
    def engines(self) -> Path:
        """Compiled models, which are caches: <model>/, see edged.execution.engine_cache."""
        return self.root / "engines"

    def engine_cache(self, model: str) -> Path:
        """Return the folder of the compiled models of a model."""
        return self.engines / model

    @property
    def captures(self) -> Path:
        """Images of sampled requests, if capture is configured: <model>/<time>-<random>.<suffix>."""
        return self.root / "capture"

    def capture(self, model: str) -> Path:
        """Return the folder of the sampled requests of a model."""
        return self.captures / model

    def make(self) -> None:
        """Create the folders.

        Raises:
            StateError: A folder cannot be created or written to.
        """
        try:
            folders = (self.claimed, self.staging, self.rejected, self.superseded, self.models, self.calibrations)
            for folder in (self.root, *folders):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or error
            raise StateError(f"cannot write state_dir {self.root}: {reason}; make it writable or change it") from error

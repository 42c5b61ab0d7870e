"""Where everything lies in the state folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edged.errors import StateError

CLAIMED_NAME = "file"  # as in rejected/<sha256>/file: names from outside are kept in the journal only


@dataclass(frozen=True)
class Paths:
    """The state folder.

    Attributes:
        root: state_dir of the config.
    """

    root: Path

    @property
    def claimed(self) -> Path:
        """Dropped files that are being worked on: <sha256>/<name>."""
        return self.root / "claimed"

    @property
    def staging(self) -> Path:
        """Artifacts in the making: <update id>/."""
        return self.root / "staging"

    @property
    def rejected(self) -> Path:
        """Files that cannot be used: <sha256>/{file,reason.json}."""
        return self.root / "rejected"

    @property
    def models(self) -> Path:
        """Published generations, see edged.artifacts.store."""
        return self.root / "models"

    @property
    def journal(self) -> Path:
        """The history."""
        return self.root / "journal.db"

    @property
    def lock(self) -> Path:
        """Held by the one daemon that may write here."""
        return self.root / "lock"

    @property
    def calibrations(self) -> Path:
        """Decoded calibration images: <model>/<digest>/."""
        return self.root / "calib"

    def calibration(self, model: str) -> Path:
        """Those of one model."""
        return self.calibrations / model

    @property
    def captures(self) -> Path:
        """Samples of live requests, where they are asked for: <model>/<time>-<random>.<suffix>."""
        return self.root / "capture"

    def capture(self, model: str) -> Path:
        """Those of one model."""
        return self.captures / model

    def make(self) -> None:
        """Make the folders.

        Raises:
            StateError: They cannot be made or written.
        """
        try:
            for folder in (self.root, self.claimed, self.staging, self.rejected, self.models, self.calibrations):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            reason = error.strerror or error
            raise StateError(f"cannot write state_dir {self.root}: {reason}; make it writable or change it") from error

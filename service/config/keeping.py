"""The sections of the config file on what is kept: of live requests, on the disk, in the journal."""

from __future__ import annotations

from dataclasses import dataclass

from service.config.fields import number, setting, size, whole


@dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """A random sample of live requests, kept as images; off by default."""

    share: float = setting(number(0, 1), 0.0)
    max_images: int = setting(whole(1), 1000)
    max_bytes: int = setting(size, 256 << 20)
    max_age_days: float = setting(number(above=0), 30.0)

    @property
    def max_age_s(self) -> float:
        """In seconds."""
        return self.max_age_days * 86400


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """How many live requests are compared with the calibration images; nothing of them is kept."""

    share: float = setting(number(0, 1), 0.0)


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """What generations and caches may take."""

    max_bytes: int | None = setting(size, None)


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """How much of the past the journal tells."""

    max_updates: int = setting(whole(10), 2000)
    max_age_days: float = setting(number(above=0), 730.0)

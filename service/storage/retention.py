"""Deletes expired content of the state folder: captured images, compiled models, and files beyond their limits."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from edged.artifacts.store import ModelStore
from edged.errors import StateError
from service.config.load import Config, ModelConfig
from service.journal.store import Journal
from service.storage.capture_ring import Ring
from service.storage.garbage import DAY_S, damaged_generations, kept_files, remove_folder, unused_engines
from service.storage.paths import Paths

log = logging.getLogger(__name__)


def trim(config: Config, paths: Paths, journal: Journal, now: float | None = None) -> None:
    """Delete everything that has expired; failures are logged and tried again next time.

    Args:
        config: Configuration in force.
        paths: Locations in the state folder.
        journal: History of the updates.
        now: Time by which ages are judged, in seconds since 1970; None for that of the wall clock.
    """
    now = time.time() if now is None else now
    _trim_captures(config, paths, now)
    _trim_engines(paths)
    _trim_damaged(config, paths, now)
    try:
        for entry in kept_files(config, paths, journal, now):
            remove_folder(entry.path)
            log.info("removed %s, %d bytes: see rejected.keep and rejected.keep_days", entry.path, entry.bytes)
    except (OSError, StateError) as error:
        log.error("cannot remove rejected or superseded files: %s; make %s writable", error, paths.root)


def _trim_captures(config: Config, paths: Paths, now: float) -> None:
    for folder in sorted(paths.captures.iterdir()) if paths.captures.is_dir() else ():
        model = config.model(folder.name)
        try:
            if model is not None:
                ring_of(model, folder).trim(now)
            else:
                remove_folder(folder)
                log.warning("removed the captured images of %s: the model is not configured any more", folder.name)
        except (OSError, StateError) as error:
            log.error("cannot remove captured images of %s: %s; remove %s", folder.name, error, folder)


def _trim_engines(paths: Paths) -> None:
    try:
        for entry in unused_engines(paths, ModelStore(paths.models)):
            remove_folder(entry.path)
            log.info("removed %s, %d bytes: no generation needs it", entry.path, entry.bytes)
    except (OSError, StateError) as error:
        log.error("cannot remove compiled models: %s; make %s writable", error, paths.engines)


def _trim_damaged(config: Config, paths: Paths, now: float) -> None:
    try:
        for entry in damaged_generations(ModelStore(paths.models), now - config.rejected.keep_days * DAY_S):
            remove_folder(entry.path)
            log.warning("removed %s, %d bytes, a damaged generation: see rejected.keep_days", entry.path, entry.bytes)
    except (OSError, StateError) as error:
        log.error("cannot remove damaged generations: %s; make %s writable", error, paths.models)


def ring_of(model: ModelConfig, folder: Path) -> Ring:
    """Return the ring of the captured images of a model."""
    capture = model.capture
    return Ring(folder, capture.max_images, capture.max_bytes, capture.max_age_s)

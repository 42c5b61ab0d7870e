"""Claimed files that no update knows of, after a kill or the loss of the journal: they go back to the drop folder.

    claimed/<sha256>/{file,origin.json}   ->   drop/<model>/<name>

A file whose update has ended is removed by service.updates.files instead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from edged.artifacts.digest import sha256_file
from edged.atomic import as_state_error, fsync_directory, fsync_file, temporary_sibling, write_atomic
from edged.errors import StateError
from edged.signing.verification import signature_of
from service.intake.drop_folder import is_ignored
from service.storage.claim_origin import read_origin
from service.storage.paths import CLAIMED_NAME
from service.units import printable

log = logging.getLogger(__name__)

_DIGEST_LENGTH = 64
_SHOWN_DIGITS = 12


def give_back(claimed: Path, drop: Path, models: Collection[str], is_known: Callable[[str], bool]) -> list[Path]:
    """Move each claimed file that no update knows of back to the drop folder of its model.

    What cannot be given back stays where it is, and is logged.

    Args:
        claimed: The folder claimed/.
        drop: The drop folder.
        models: Names of the configured models.
        is_known: Returns whether there is an update of the file with a SHA-256 (hex).

    Returns:
        The paths in the drop folder, the files that were there still included.
    """
    given = []
    for folder in sorted(claimed.iterdir()):
        if len(folder.name) != _DIGEST_LENGTH or not (folder / CLAIMED_NAME).is_file() or is_known(folder.name):
            continue
        try:
            if (target := _give_back(folder, drop, models)) is not None:
                given.append(target)
        except (OSError, StateError) as error:
            log.error("%s belongs to no update, and cannot be moved back to the drop folder: %s", folder, error)
    return given


def _give_back(folder: Path, drop: Path, models: Collection[str]) -> Path | None:
    origin, digest = read_origin(folder), folder.name
    if origin is not None and is_ignored(origin.name):  # the watcher would never find it
        origin = None
    if origin is None or origin.model not in models:
        why = "where it came from is not known" if origin is None else f"model {origin.model!r:.80} is not configured"
        log.error("%s belongs to no update, and %s; drop its `file` again, or let `edged gc` remove it", folder, why)
        return None
    if sha256_file(folder / CLAIMED_NAME) != digest:
        log.error("%s belongs to no update and is damaged; drop %s again", folder, printable(origin.name))
        return None
    target = drop / origin.model / origin.name
    if os.path.lexists(target):
        if target.is_file() and not target.is_symlink() and sha256_file(target) == digest:
            log.info("%s was being claimed when the daemon was killed; it is in the drop folder still", target)
            _remove(folder)
            return target
        name = Path(origin.name)
        target = target.with_name(f"{name.stem}-{digest[:_SHOWN_DIGITS]}{name.suffix}")
    if origin.signature is not None:  # first: the file alone would be rejected as unsigned
        write_atomic(signature_of(target), origin.signature.encode())
    _move(folder / CLAIMED_NAME, target)
    _remove(folder)
    log.warning("%s had been claimed, but no update knows of it: moved back to the drop folder", target)
    return target


def _move(file: Path, target: Path) -> None:
    """Copy a file to `target` on any filesystem, where it appears complete and synced."""
    temporary = temporary_sibling(target)  # hidden, so that the watcher ignores it
    with as_state_error(target):
        try:
            try:
                os.link(file, temporary)
            except OSError:  # another filesystem, or one without links
                shutil.copyfile(file, temporary)
            fsync_file(temporary)
            temporary.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(target.parent)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)

"""The second copy of what the journal decides by: a checksummed file for each model.

    <folder>/<model>.json       two lines: {"format", "sha256"}, and the JSON object whose digest that is

A copy holds the hold of the model, and the updates that have ended as far as they decide about later ones: which files
are not accepted again, and which generations were in service. It is written before the journal commits, so it is never
older than the journal.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edged.atomic import as_state_error, write_atomic
from edged.errors import StateError
from edged.json_document import MALFORMED
from service.journal.rows import COLUMNS, hold_of, json_of, update_of
from service.journal.states import ENDS, State
from service.journal.update import Hold, Update, UpdateSignature

log = logging.getLogger(__name__)

_FORMAT = 1
_SUFFIX = ".json"
_DAMAGED = ".damaged"
_MAX_BYTES = 64 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")  # of a model; a damaged journal may hold others
# Columns of an update in a copy, without its stages and its report, which decide nothing.
_FIELDS = tuple(name for name in COLUMNS.split(", ") if name not in ("model", "stages", "report"))


class DamagedCopyError(Exception):
    """A copy is not what was written."""


@dataclass(frozen=True)
class ModelCopy:
    """What must not be lost of a model.

    Attributes:
        model: Model name.
        hold: The operator's instructions.
        last_update: Number of the newest update of any model when this was written.
        updates: Updates that have ended, without stages and reports, the oldest first.
    """

    model: str
    hold: Hold
    last_update: int
    updates: tuple[Update, ...]


def encode(copy: ModelCopy) -> bytes:
    """Return the contents of the file of a copy."""
    data = {
        "model": copy.model,
        "hold": vars(copy.hold),
        "last_update": copy.last_update,
        "updates": [[_plain(getattr(update, name)) for name in _FIELDS] for update in copy.updates],
    }
    body = json.dumps(data, separators=(",", ":")).encode() + b"\n"
    head = {"format": _FORMAT, "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(head).encode() + b"\n" + body


def decode(content: bytes) -> ModelCopy:
    """Return the copy that `encode` turned into `content`.

    Raises:
        DamagedCopyError: It is anything else.
    """
    head, _, body = content.partition(b"\n")
    try:
        said = json.loads(head)
        if not isinstance(said, dict) or said.get("sha256") != hashlib.sha256(body).hexdigest():
            raise DamagedCopyError("its checksum is not that of its contents")
        if said.get("format") != _FORMAT:
            raise DamagedCopyError(f"it has format {said.get('format')!r:.20}, not {_FORMAT}")
        data = json.loads(body)
        return _read(data)
    except MALFORMED as error:
        raise DamagedCopyError(f"it cannot be read: {error!r:.100}") from error


def _plain(value: object) -> object:
    if isinstance(value, UpdateSignature):
        return json_of(value)
    return value.value if isinstance(value, State) else value


def _read(data: Mapping[str, Any]) -> ModelCopy:
    model, hold = data["model"], data["hold"]
    defaults = dict.fromkeys(COLUMNS.split(", ")) | {"model": model}
    rows = [defaults | dict(zip(_FIELDS, values, strict=True)) for values in data["updates"]]
    updates = (update_of([row[name] for name in COLUMNS.split(", ")]) for row in rows)
    return ModelCopy(
        str(model),
        hold_of((hold["pinned"], hold["paused"], hold["highest_version"])),
        int(data["last_update"]),
        tuple(update for update in updates if update.state in ENDS and update.id > 0),
    )


class Copies:
    """The copies of all models.

    Args:
        folder: Folder of the files; created with the first one.
        problem: Returns why nothing may be written there now; None if it may.
    """

    def __init__(self, folder: Path, problem: Callable[[], str | None] = lambda: None) -> None:
        self._folder = folder
        self._problem = problem
        self._written: dict[str, bytes] = {}

    def path(self, model: str) -> Path:
        """Return the file of a model."""
        return self._folder / f"{model}{_SUFFIX}"

    def write(self, copy: ModelCopy) -> None:
        """Write the copy of a model, unless it is on the disk already.

        Raises:
            StateError: The disk is full, or the folder cannot be written or is gone.
        """
        if not _NAME.fullmatch(copy.model):
            return
        if (problem := self._problem()) is not None:  # nothing ends, and no hold changes, in a folder that is gone
            raise StateError(problem)
        path, content = self.path(copy.model), encode(copy)
        if self._written.get(copy.model) == content and path.is_file():
            return
        with as_state_error(path):
            _make_room(self._folder, is_folder=True)
            self._folder.mkdir(exist_ok=True)
            _make_room(path, is_folder=False)
        write_atomic(path, content)
        self._written[copy.model] = content

    def read(self) -> Iterator[ModelCopy]:
        """Yield all copies; one that is damaged is quarantined as NAME.json.damaged, and logged."""
        try:
            paths = sorted(path for path in self._folder.iterdir() if path.suffix == _SUFFIX)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            log.error("the second copy of the journal in %s cannot be read: %s", self._folder, error)
            return
        for path in paths:
            try:
                content = _content(path)
                copy = decode(content)
                if path.stem != copy.model:
                    raise DamagedCopyError(f"it is the copy of model {copy.model!r:.80}")
            except (OSError, DamagedCopyError) as error:
                log.error("%s, the second copy of the journal, is damaged: %s; it is written anew", path, error)
                _quarantine(path)
            else:
                self._written[copy.model] = content
                yield copy


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)


def _make_room(path: Path, *, is_folder: bool) -> None:
    """Quarantine what is in the place of a folder, or of a file, and is something else."""
    if os.path.lexists(path) and not (path.is_dir() if is_folder else path.is_file() and not path.is_symlink()):
        log.error("%s is no %s; it is quarantined", path, "folder" if is_folder else "file")
        _quarantine(path)


def _quarantine(path: Path) -> None:
    aside = path.with_name(path.name + _DAMAGED)
    try:
        if aside.is_dir() and not aside.is_symlink():
            return  # the first one found stays
        path.replace(aside)
    except OSError as error:
        raise StateError(f"cannot quarantine {path}: {error.strerror}; remove it") from error

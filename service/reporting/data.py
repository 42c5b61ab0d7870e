"""The data of the report of an update, as JSON types: from the journal and from the files of the update.

The files are stored in the folder of the generation that the update published, or in that of its rejected file:
    report.json, manifest.json     results of the worker, see edged.artifacts.writer
    predictions.json               sample predictions with pictures, see service.worker.predictions
    course.json                    resource trace of the worker, see ResourceTrace
    report.html                    the report as a page, see service.reporting.page
"""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edged.artifacts.store import ModelStore
from edged.errors import UsageError
from edged.json_document import MALFORMED, parse_document
from service.journal.store import Journal, Update
from service.reporting.timeline import spans
from service.storage.paths import Paths
from service.worker.job import PREDICTIONS

log = logging.getLogger(__name__)

COURSE, PAGE = "course.json", "report.html"
EVIDENCE = ("report.json", PREDICTIONS, COURSE)  # files that are kept with a rejected file

JSON = dict[str, Any]


@dataclass(frozen=True)
class ResourceTrace:
    """Measurements of a worker by the supervisor.

    Attributes:
        update: Number of the update that the worker ran for.
        started_at: Start of the worker in seconds since 1970.
        memory: Samples of seconds since the start and bytes of resident memory.
        memory_max: Memory limit in bytes; None without one.
        held_back_s: Seconds for which it was held back because requests arrived.
    """

    update: int
    started_at: float
    memory: list[tuple[float, int]]
    memory_max: int | None
    held_back_s: float = 0.0

    def to_json(self) -> bytes:
        """Return the contents of course.json."""
        return json.dumps(asdict(self)).encode()


def gather(journal: Journal, store: ModelStore, paths: Paths, update_id: int) -> JSON:
    """Return everything that is known of an update.

    Returns:
        "update" with its "events"; "timeline", see service.reporting.timeline; "report", "manifest", "predictions" and
        "course", each None if its file is missing; "path" of report.html, None if it was not written.

    Raises:
        UsageError: There is no such update.
    """
    update = journal.require(update_id)
    events = journal.events(update_id)
    folder = folder_of(update, store, paths)
    page = None if folder is None else folder / PAGE
    return {
        "update": {**update.to_dict(), "events": [event.to_dict() for event in events]},
        "timeline": [asdict(span) for span in spans(update, events)],
        "report": _read(folder, "report.json"),
        "manifest": _read(folder, "manifest.json"),
        "predictions": _read(folder, PREDICTIONS),
        "course": _read(folder, COURSE),
        "path": str(page) if page is not None and page.is_file() else None,
    }


def folder_of(update: Update, store: ModelStore, paths: Paths) -> Path | None:
    """Return the folder with the files of an update: its generation, staging folder, or rejected file."""
    places = []
    if update.generation is not None:
        with contextlib.suppress(UsageError):  # a name that is no model's, in a damaged journal
            places.append(store.path(update.model, update.generation))
    places.append(paths.staged(update.id))
    if update.sha256 is not None:
        places.append(paths.rejected / update.sha256)
    return next((place for place in places if place.is_dir()), None)


def is_of(update: Update, folder: Path) -> bool:
    """Return whether this update made a folder; if the same file was dropped before, an earlier update made it."""
    course = _read(folder, COURSE)
    return course is None or course.get("update") == update.id


def _read(folder: Path | None, name: str) -> JSON | None:
    if folder is None:
        return None
    try:
        return parse_document((folder / name).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("cannot read %s: %.200s; the report leaves it out", folder / name, error)
        return None


def without_pictures(data: JSON) -> JSON:
    """Return the data without the pictures of the calibration images, but with the predictions, unless damaged."""
    if not data.get("predictions"):
        return data
    try:
        images = [{**image, "picture": None} for image in data["predictions"].get("images", ())]
    except MALFORMED:  # who knows where the pictures are
        return {**data, "predictions": None}
    return {**data, "predictions": {**data["predictions"], "images": images}}

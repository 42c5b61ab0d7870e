"""Rows of the journal as updates and events.

Every row can be read: a value that cannot be, because the file is damaged, becomes the value that says least. What
names a file or a folder is checked, so that no damage leads out of the state folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edged.json_document import parse_document
from service.journal.states import State
from service.journal.update import Event, Hold, Update, UpdateReport, UpdateSignature
from service.units import printable

COLUMNS = (
    "id, model, state, file_name, file_bytes, sha256, key, generation, attempt, code, reason, "
    "dropped_at, updated_at, stages, report, signature"
)
_PARTS = ("swap", "shadow", "rollback")
_HEX = re.compile("[0-9a-f]{1,64}")
_LAST_TIME = 253402300799.0  # the end of the year 9999


def update_of(row: Sequence[object]) -> Update:
    """Return the update of a row with the values of COLUMNS."""
    values = dict(zip(COLUMNS.split(", "), row, strict=True))
    sha256 = values["sha256"]
    return Update(
        id=_whole(values["id"]),
        model=_text(values["model"]),
        state=State.read(_text(values["state"])),
        file_name=_text(values["file_name"]),
        file_bytes=_whole(values["file_bytes"]),
        sha256=sha256 if isinstance(sha256, str) and _HEX.fullmatch(sha256) else None,
        key=_optional_text(values["key"]),
        generation=_whole(values["generation"]) or None,
        attempt=_whole(values["attempt"]),
        code=_optional_text(values["code"]),
        reason=_optional_text(values["reason"]),
        dropped_at=time_of(values["dropped_at"]),
        updated_at=time_of(values["updated_at"]),
        stages={name: float(seconds) for name, seconds in _object(values["stages"]).items() if _is_number(seconds)},
        report=_report(_object(values["report"])),
        signature=_signature(_object(values["signature"])),
    )


def last_times_of(row: Sequence[object]) -> tuple[str, tuple[float, float | None]]:
    """Return a model and the times of a row with its name, of the last drop and of the last success, if any."""
    model, dropped_at, live_at = row
    return _text(model), (time_of(dropped_at), None if live_at is None else time_of(live_at))


def hold_of(row: Sequence[object]) -> Hold:
    """Return the hold of a row with pinned, paused and the highest version; a value that says nothing holds."""
    pinned, paused, version = row
    return Hold(pinned != 0, paused != 0, _whole(version) or None)


def event_of(row: Sequence[object]) -> Event:
    """Return the event of a row with time, state and detail."""
    at, state, detail = row
    return Event(time_of(at), State.read(_text(state)), _object(detail))


def json_of(value: UpdateReport | UpdateSignature | Mapping[str, float] | None) -> str | None:
    """Return the value of one of the columns that hold JSON."""
    if value is None:
        return None
    if isinstance(value, UpdateSignature):
        return json.dumps(vars(value))
    return json.dumps(value.to_dict() if isinstance(value, UpdateReport) else value)


def _report(data: Mapping[str, Any]) -> UpdateReport:
    misplaced = {key for key in _PARTS if key in data and not isinstance(data[key], dict)}
    return UpdateReport.from_dict({key: value for key, value in data.items() if key not in misplaced})


def _signature(data: Mapping[str, Any]) -> UpdateSignature | None:
    kinds = {"version": int, "key": str, "key_id": str, "envelope": str}
    if any(type(data.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return UpdateSignature(**{name: data[name] for name in kinds})


def _object(value: object) -> dict[str, Any]:
    """Return the JSON object of a text, see `parse_document`; {} if it holds none."""
    try:
        return parse_document(value) if isinstance(value, str) else {}
    except ValueError:
        return {}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LAST_TIME


def _whole(value: object) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def time_of(value: object, default: float = 0.0) -> float:
    """Return a time of a row in seconds since 1970; the default if it is none."""
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= _LAST_TIME else default


def _text(value: object) -> str:
    return printable(value) if isinstance(value, str) else "" if value is None else printable(repr(value))


def _optional_text(value: object) -> str | None:
    return None if value is None else _text(value)

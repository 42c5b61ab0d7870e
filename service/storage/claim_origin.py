"""Where a claimed file came from: noted next to it, so that it can be given back without the journal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from edged.atomic import write_atomic
from edged.json_document import MALFORMED
from service.storage.paths import ORIGIN_NAME

_MAX_BYTES = 1 << 18  # with a signature of its largest size, escaped


@dataclass(frozen=True)
class Origin:
    """Where a claimed file came from.

    Attributes:
        model: Model that it was dropped for.
        name: Its name in the drop folder.
        signature: Contents of its signature file; None if its model needs none.
    """

    model: str
    name: str
    signature: str | None = None


def write_origin(folder: Path, origin: Origin) -> None:
    """Note the origin of the claimed file in `folder`, durably.

    Raises:
        StateError: The disk is full or the folder cannot be written.
    """
    write_atomic(folder / ORIGIN_NAME, json.dumps(vars(origin)).encode())


def read_origin(folder: Path) -> Origin | None:
    """Return the origin of the claimed file in `folder`; None if it is not known."""
    try:
        with (folder / ORIGIN_NAME).open("rb") as file:
            data = json.loads(file.read(_MAX_BYTES))
        model, name, signature = data["model"], data["name"], data.get("signature")
    except (OSError, *MALFORMED):
        return None
    if not isinstance(model, str) or not isinstance(name, str) or Path(name).name != name:
        return None
    return Origin(model, name, signature if isinstance(signature, str) else None)

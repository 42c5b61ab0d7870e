"""Parts of a report that cannot be shown, because their file is damaged or was written by another version."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from edged.json_document import MALFORMED

log = logging.getLogger(__name__)

T = TypeVar("T")


def if_whole(name: str, build: Callable[[], T], otherwise: T) -> T:
    """Return a part of a report, so that one that cannot be shown does not take the others with it.

    Args:
        name: Name of the part, for the log.
        build: Makes the part from the data of the report.
        otherwise: What is returned in place of a part whose data is malformed.
    """
    try:
        return build()
    except MALFORMED as error:
        log.warning("a report leaves out %s, whose data is damaged: %.200r", name, error)
        return otherwise

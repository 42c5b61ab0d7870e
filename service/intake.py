"""From a settled file in the drop folder to a journaled update, or to the earlier one it repeats."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edged.errors import EdgedError
from service.claim import Claim, NotSettledError, claim, release
from service.config import ModelConfig
from service.context import Context, update_key
from service.journal import Update
from service.rejects import discard, reject
from service.states import State

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settled:
    """A file in the drop folder that nobody writes to any more.

    Attributes:
        model: Model that it is meant for.
        path: Where it lies.
        seconds: How long it took to settle.
    """

    model: str
    path: Path
    seconds: float


class Intake:
    """Claims files one after another.

    Args:
        context: What the supervisor owns.
        offer: Told of every new update.
    """

    def __init__(self, context: Context, offer: Callable[[Update], None]) -> None:
        self._context = context
        self._offer = offer
        self._lock = asyncio.Lock()

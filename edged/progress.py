"""Progress reports of long work. The library has no clock: the listener measures times."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class ProgressListener(Protocol):
    """Receiver of every stage and of the progress inside it."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Enter the stage `name`; the context lasts as long as the stage."""

    def progress(self, done: int, total: int) -> None:
        """Receive that `done` of `total` steps of the current stage are done."""

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Receive the memory plan of the current stage, in plain JSON types."""


class SilentListener:
    """A listener that ignores everything."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def progress(self, done: int, total: int) -> None:
        """Do nothing."""

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Do nothing."""

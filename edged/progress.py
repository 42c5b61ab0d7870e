"""How long work reports what it is doing. The library has no clock: whoever watches, times."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol


class ProgressListener(Protocol):
    """Told of every stage and of the progress inside it."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Enter the stage `name`; the context lasts as long as the stage."""

    def progress(self, done: int, total: int) -> None:
        """`done` of `total` steps of the current stage are over."""

    def planned(self, plan: Mapping[str, Any]) -> None:
        """How the work of the current stage will be divided, in plain JSON types."""


class SilentListener:
    """An listener that ignores everything."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def progress(self, done: int, total: int) -> None:
        """Do nothing."""

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Do nothing."""

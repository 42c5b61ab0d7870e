"""A progress listener that notes what it receives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edged.progress import SilentListener


class NotedProgress(SilentListener):
    """Notes the stages, and the progress inside each.

    Attributes:
        steps: The steps "done" and "total" of each stage by its name, in the order of the stages.
    """

    def __init__(self) -> None:
        self.steps: dict[str, list[tuple[int, int]]] = {}
        self._stages: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:  # type: ignore[override]
        """Note a stage."""
        self.steps.setdefault(name, [])
        self._stages.append(name)
        yield
        self._stages.pop()

    def progress(self, done: int, total: int) -> None:
        """Note a step of the innermost stage."""
        self.steps[self._stages[-1]].append((done, total))

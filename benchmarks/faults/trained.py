"""What most sections begin with: trained networks, and a folder to work in."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.tasks import Task


@contextlib.contextmanager
def trained() -> Iterator[tuple[Task, Path]]:
    """Yield trained networks with their images, and an empty folder; both are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="edged-") as name:
        task, work = Path(name, "task"), Path(name, "work")
        for folder in (task, work):
            folder.mkdir()
        Task.write(task)
        yield Task(task), work

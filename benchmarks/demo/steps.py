"""The steps of the demo as they are shown: a progress bar on a terminal, otherwise a line for each stage."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from service.journal.states import UPDATE_STAGES

_WIDTH = 34  # of the name of a step


class Step:
    """One step that is under way.

    Args:
        title: Text in front of the bar.
        output: Where the step is shown; a bar needs a terminal.
    """

    def __init__(self, title: str, output: TextIO) -> None:
        self._output = output
        self._shown: set[str] = set()
        self._bar: tqdm[NoReturn] | None = None
        if output.isatty():
            self._bar = tqdm(
                total=1,
                desc=f"{title:{_WIDTH}}",
                file=output,
                leave=False,
                ncols=shutil.get_terminal_size().columns,  # 80 where a terminal does not say, as tqdm would not
                nrows=2,
                unit="",
                bar_format="{desc} {bar:24} {unit}",
            )

    def at(self, done: int, total: int, stage: str = "") -> None:
        """Show how far the step is.

        Args:
            done: Finished parts.
            total: All parts.
            stage: Name of the stage that they belong to.
        """
        if self._bar is not None:
            self._bar.total, self._bar.n = total, done
            self._bar.unit = f"{stage} {done}/{total}".strip()
            self._bar.refresh()

    def update(self, update: Mapping[str, Any]) -> None:
        """Show how far an update is: the layers on a terminal, otherwise a line for each stage that ended."""
        stages, progress = update.get("stages") or {}, update.get("progress") or {}
        if self._bar is None:
            for stage in [stage for stage in UPDATE_STAGES if stage in stages and stage not in self._shown]:
                self._output.write(f"      {stage:12} {stages[stage]:6.1f} s\n")
                self._output.flush()
                self._shown.add(stage)
        elif progress.get("total"):
            self.at(progress["done"], progress["total"], progress["stage"])
        else:
            self.at(len(stages), len(UPDATE_STAGES), progress.get("stage") or str(update.get("state")).lower())

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class Steps:
    """The numbered steps of a run.

    Args:
        count: Number of all steps.
        output: Where they are shown.
        check: Called before each step; it raises if the run has to end.
    """

    def __init__(self, count: int, output: TextIO, check: Callable[[], None] = lambda: None) -> None:
        self._count, self._output, self._check = count, output, check
        self._number = 0

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Show a step while it runs, and at its end its seconds."""
        self._check()
        self._number += 1
        numbered = f"[{self._number}/{self._count}] {title}"
        begin = time.monotonic()
        if not self._output.isatty():
            self._output.write(f"{numbered}\n")
            self._output.flush()
        step = Step(numbered, self._output)
        try:
            yield step
        finally:
            step.close()
        line = f"{numbered:{_WIDTH}}" if self._output.isatty() else " " * 5 + f" {'done':12}"
        self._output.write(f"{line} {time.monotonic() - begin:6.1f} s\n")
        self._output.flush()

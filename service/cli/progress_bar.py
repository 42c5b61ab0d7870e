"""A progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NoReturn

from tqdm import tqdm

from service.cli.tables import plan_line


class BarListener:
    """An ProgressListener that draws one bar for each stage that counts its steps.

    Args:
        output: A terminal; anything else gets the plan only.
    """

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._stages: list[str] = []
        self._bar: tqdm[NoReturn] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name the bar of what comes."""
        self._close()
        self._stages.append(name)
        try:
            yield
        finally:
            self._stages.pop()
            self._close()

    def progress(self, done: int, total: int) -> None:
        """Draw."""
        bar = self._bar
        if bar is None:
            label = self._stages[-1] if self._stages else ""
            bar = tqdm(
                total=total, desc=f"{label:>10}", file=self._output, leave=False, dynamic_ncols=True, disable=None
            )
            self._bar = bar
        bar.total = total
        bar.update(done - bar.n)

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Write the plan above the bars."""
        tqdm.write(plan_line(plan), file=self._output)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

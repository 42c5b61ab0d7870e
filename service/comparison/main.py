"""`python -m service.comparison.main`: read a Measurement from stdin, report progress and the row, a line of JSON each.

Lines go to stdout: {"stage": name}, {"done": n, "total": n}, then {"row": ...} or {"error": ..., "code": ...,
"exit_code": ...}. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from edged.errors import EdgedError, MemoryLimitError
from service.comparison.job import Measurement
from service.system.pillow_warnings import ignore_warnings_of_pillow
from service.system.processes import die_with_parent


class PipeListener:
    """A listener that writes progress as lines of JSON, at most one for each hundredth of a stage.

    Args:
        output: Where the lines go.
    """

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self._percent = -1

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Write the stage's name."""
        self._percent = -1
        write(self._output, {"stage": name})
        yield

    def progress(self, done: int, total: int) -> None:
        """Write how far the stage is, if that has changed."""
        percent = 100 * done // max(total, 1)
        if percent != self._percent:
            self._percent = percent
            write(self._output, {"done": done, "total": total})

    def planned(self, plan: Mapping[str, Any]) -> None:
        """Do nothing: the row has what was measured."""


def write(output: IO[str], message: Mapping[str, Any]) -> None:
    """Write a message on a line of its own."""
    output.write(json.dumps(message) + "\n")
    output.flush()


def main() -> None:
    """Make the measurement that stdin describes."""
    request = json.load(sys.stdin)
    die_with_parent(request["parent"])
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ignore_warnings_of_pillow()
    message: dict[str, Any]
    try:
        from service.comparison.measure import measure  # torch

        message = {"row": measure(Measurement.from_dict(request["measurement"]), PipeListener(output))}
    except EdgedError as error:
        message = {"error": str(error), "code": error.code, "exit_code": error.exit_code}
    except MemoryError:
        text = "out of memory; free memory, or use fewer images"
        message = {"error": text, "code": MemoryLimitError.code, "exit_code": MemoryLimitError.exit_code}
    write(output, message)


if __name__ == "__main__":
    main()

"""The demo's steps: lines off a terminal, a bar on one."""

from __future__ import annotations

import contextlib
import io

import pytest

from benchmarks.demo.__main__ import Interruption
from benchmarks.demo.steps import Steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_each_stage_has_one_line() -> None:
    output = io.StringIO()
    steps = Steps(2, output)
    with steps.step("drop a.pt") as step:
        step.at(1, 4)
        step.update({"stages": {}, "progress": None, "state": "DROPPED"})
        step.update(
            {"stages": {"settle": 0.25, "claim": 0.5}, "progress": {"stage": "quantize", "done": 1, "total": 9}}
        )
        step.update({"stages": {"claim": 0.5, "settle": 0.25, "quantize": 12.0}})
    lines = [line.split() for line in output.getvalue().splitlines()]
    assert lines[:4] == [
        ["[1/2]", "drop", "a.pt"],
        ["settle", "0.2", "s"],
        ["claim", "0.5", "s"],
        ["quantize", "12.0", "s"],
    ]
    assert lines[4][0] == "done"
    assert len(lines) == 5


def test_on_a_terminal_a_bar_shows_the_layers_and_leaves_one_line() -> None:
    output = Terminal()
    with Steps(1, output).step("drop a.pt") as step:
        step.update({"stages": {"settle": 0.1}, "progress": {"stage": "quantize", "done": 3, "total": 9}})
    drawn = output.getvalue()
    assert "quantize 3/9" in drawn
    assert drawn.count("\n") == 1
    assert drawn.rpartition("\r")[2].startswith("[1/1] drop a.pt")


def test_a_step_that_fails_is_not_done() -> None:
    output = io.StringIO()
    try:
        with Steps(1, output).step("fail"):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert output.getvalue() == "[1/1] fail\n"


def test_a_step_does_not_begin_if_the_run_has_to_end() -> None:
    output = io.StringIO()
    interruption = Interruption()
    steps = Steps(2, output, interruption.check)
    with steps.step("first"), contextlib.suppress(KeyboardInterrupt):  # as in a callback of an import
        interruption.arrive()
    with pytest.raises(KeyboardInterrupt), steps.step("second"):
        pass
    assert "second" not in output.getvalue()

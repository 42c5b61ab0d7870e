"""Parts of a report whose data is damaged."""

from __future__ import annotations

import pytest

from service.reporting.parts import if_whole


def test_a_part_that_can_be_shown_is() -> None:
    assert if_whole("the layers", lambda: "all", "none") == "all"


@pytest.mark.parametrize("text", ["x", "9" * 500])
def test_one_that_cannot_is_left_out_and_logged(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert if_whole("the layers", lambda: f"{int(text) / 2}", "none") == "none"
    assert "a report leaves out the layers, whose data is damaged: " in caplog.text
    assert len(caplog.records[0].getMessage()) < 300


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(MemoryError):
        if_whole("the layers", _run_out, "none")


def _run_out() -> str:
    raise MemoryError

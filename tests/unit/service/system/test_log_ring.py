from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from service.system.log_ring import MAX_CHARACTERS, LogRing, about
from service.system.logs import MessageFormatter


def ring_of(*messages: str, lines: int = 100) -> LogRing:
    ring = LogRing(MessageFormatter(), lines)
    for message in messages:
        ring.handle(logging.LogRecord("service.x", logging.INFO, "x.py", 1, "%s", (message,), None))
    return ring


def test_the_last_lines_are_kept_with_their_numbers() -> None:
    kept = ring_of(*"abcde", lines=3).lines()
    assert [(line.number, line.message) for line in kept] == [(3, "c"), (4, "d"), (5, "e")]
    assert kept[0].to_dict().keys() == {"number", "time", "level", "message"}
    assert kept[0].level == "info"


def test_a_long_line_is_cut() -> None:
    (line,) = ring_of("x" * 10_000).lines()
    assert (len(line.message), line.message[-4:]) == (MAX_CHARACTERS, "x...")


def test_control_characters_are_escaped_and_fields_are_added() -> None:
    ring = LogRing(MessageFormatter())
    record = logging.LogRecord("service.x", logging.ERROR, "x.py", 1, "a\n\x1b[2J", (), None)
    record.update = 3
    ring.handle(record)
    assert ring.lines()[0].message == r"a\n\x1b[2J update=3"


def test_a_bad_record_is_no_error_of_its_caller(capsys) -> None:  # type: ignore[no-untyped-def]
    ring = LogRing(MessageFormatter())
    ring.handle(logging.LogRecord("service.x", logging.INFO, "x.py", 1, "%d", ("not a number",), None))
    assert ring.lines() == []
    assert "TypeError" in capsys.readouterr().err


MESSAGES = [
    "ready",
    "update 1 of cam claimed: a.pt, 5 bytes",
    "worker of cam: one",
    "update 12 of shelf claimed: b.pt, 5 bytes",
    "update 1 of cam is committed",
    "worker of cam: two",
    "model shelf: pinned, not paused",
    "model shelf-2: pinned, not paused",
]


def test_lines_about_a_model_or_an_update() -> None:
    assert list(about(MESSAGES, None, None)) == list(range(8))
    assert list(about(MESSAGES, "cam", None)) == [1, 2, 4, 5]
    assert list(about(MESSAGES, "shelf", None)) == [3, 6]
    assert list(about(MESSAGES, None, 1)) == [1, 2, 4]
    assert list(about(MESSAGES, "shelf", 12)) == [3]
    assert list(about(MESSAGES, "cam", 12)) == []
    assert list(about(MESSAGES, None, 2)) == []


@given(st.lists(st.text()), st.none() | st.text(min_size=1), st.none() | st.integers(0, 20))
def test_any_text_can_be_searched(messages: list[str], model: str | None, update: int | None) -> None:
    found = list(about(messages, model, update))
    assert found == sorted(set(found))
    assert all(0 <= index < len(messages) for index in found)

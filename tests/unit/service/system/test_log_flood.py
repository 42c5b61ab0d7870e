import io
import json
import logging

import pytest

from service.system import logs
from service.system.log_flood import _KINDS, BURST, EVERY_S, OUTPUT_BURST, FloodFilter


class Flood:
    def __init__(self):
        self.now = 0.0
        self.filter = FloodFilter(lambda: self.now)

    def tell(self, text="bad file %s", *values, level=logging.ERROR, name="x"):
        record = logging.LogRecord(name, level, "", 0, text, values, None)
        return getattr(record, "left_out", 0) if self.filter.filter(record) else None


@pytest.fixture
def flood():
    return Flood()


def test_some_are_let_through_then_few_and_the_next_one_tells_how_many_were_not(flood):
    assert [flood.tell("bad file %s", index) for index in range(BURST)] == [0] * BURST
    assert [flood.tell("bad file %s", index) for index in range(70)] == [None] * 70
    flood.now += EVERY_S
    assert flood.tell("bad file %s", "next") == 70
    assert flood.tell("bad file %s", "again") is None
    flood.now += 1000 * EVERY_S
    assert [flood.tell("bad file %s", index) for index in range(BURST + 1)] == [1] + [0] * (BURST - 1) + [None]


def test_other_kinds_do_not_suffer(flood):
    for _ in range(2 * BURST):
        flood.tell()
    assert flood.tell("all is well") == 0
    assert flood.tell(level=logging.INFO) == 0
    assert flood.tell(name="y") == 0


@pytest.mark.parametrize(
    ("text", "values"), [("model %s: %s", ["m", "x"]), ("update %d of %s rejected: %s", [1, "m", "x"])]
)
def test_other_models_do_not_suffer(flood, text, values):
    for number in range(2 * BURST):
        if isinstance(values[0], int):
            values[0] = number  # not the update but the model counts
        flood.tell(text, *values)
    assert flood.tell(text, *values) is None
    assert flood.tell(text, *("n" if value == "m" else value for value in values)) == 0


def test_a_childs_traceback_keeps_its_last_line(flood):
    said = [f"line {number}" for number in range(OUTPUT_BURST)]
    told = [flood.tell("worker of %s: %s", "m", line, name="service.worker.process.output") for line in said]
    assert told == [0] * OUTPUT_BURST
    assert flood.tell("worker of %s: %s", "m", "more", name="service.worker.process.output") is None
    assert flood.tell("worker of %s: %s", "n", "more", name="service.worker.process.output") == 0


def test_messages_that_are_made_otherwise_harm_nothing(flood):
    for values in (({"model": "m"},), (), None):
        assert flood.filter.filter(logging.LogRecord("x", logging.INFO, "", 0, "model %s", values, None))


def test_an_hour_of_flood_is_some_hundred_lines(flood):
    told = 0
    for _ in range(36_000):
        flood.now += 0.1
        told += flood.tell() is not None
    assert told <= BURST + 3600 / EVERY_S + 1


def test_kinds_that_never_end_are_not_all_remembered(flood):
    for index in range(3 * _KINDS):
        flood.tell(f"a message with its values in it: {index}")
    assert len(flood.filter._kinds) <= _KINDS


@pytest.mark.parametrize(("level", "expected"), [("info", BURST), ("debug", 3 * BURST)])
def test_the_log_of_the_daemon_has_it_unless_everything_is_asked_for(level, expected):
    root = logging.getLogger()
    before = list(root.handlers), root.level
    stream = io.StringIO()
    try:
        logs.configure("json", level, stream)
        for index in range(3 * BURST):
            logging.getLogger("service.x").error("bad file %d", index)
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["message"] for line in lines] == [f"bad file {index}" for index in range(expected)]

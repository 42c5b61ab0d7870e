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

    def log(self, text="bad file %s", *values, level=logging.ERROR, name="x"):
        record = logging.LogRecord(name, level, "", 0, text, values, None)
        return getattr(record, "left_out", 0) if self.filter.filter(record) else None


@pytest.fixture
def flood():
    return Flood()


def test_after_a_burst_records_are_dropped_and_the_next_one_has_their_number(flood):
    assert [flood.log("bad file %s", index) for index in range(BURST)] == [0] * BURST
    assert [flood.log("bad file %s", index) for index in range(70)] == [None] * 70
    flood.now += EVERY_S
    assert flood.log("bad file %s", "next") == 70
    assert flood.log("bad file %s", "again") is None
    flood.now += 1000 * EVERY_S
    assert [flood.log("bad file %s", index) for index in range(BURST + 1)] == [1] + [0] * (BURST - 1) + [None]


def test_a_flood_does_not_affect_records_of_other_kinds(flood):
    for _ in range(2 * BURST):
        flood.log()
    assert flood.log("all is well") == 0
    assert flood.log(level=logging.INFO) == 0
    assert flood.log(name="y") == 0


@pytest.mark.parametrize(
    ("text", "values"), [("model %s: %s", ["m", "x"]), ("update %d of %s rejected: %s", [1, "m", "x"])]
)
def test_a_flood_does_not_affect_other_models(flood, text, values):
    for number in range(2 * BURST):
        if isinstance(values[0], int):
            values[0] = number  # not the update but the model counts
        flood.log(text, *values)
    assert flood.log(text, *values) is None
    assert flood.log(text, *("n" if value == "m" else value for value in values)) == 0


def test_the_last_line_of_a_childs_traceback_passes(flood):
    said = [f"line {number}" for number in range(OUTPUT_BURST)]
    passed = [flood.log("worker of %s: %s", "m", line, name="service.worker.process.output") for line in said]
    assert passed == [0] * OUTPUT_BURST
    assert flood.log("worker of %s: %s", "m", "more", name="service.worker.process.output") is None
    assert flood.log("worker of %s: %s", "n", "more", name="service.worker.process.output") == 0


def test_records_with_unusual_messages_and_arguments_pass(flood):
    for values in (({"model": "m"},), (), None):
        assert flood.filter.filter(logging.LogRecord("x", logging.INFO, "", 0, "model %s", values, None))


def test_an_hour_of_flood_logs_a_few_hundred_lines(flood):
    passed = 0
    for _ in range(36_000):
        flood.now += 0.1
        passed += flood.log() is not None
    assert passed <= BURST + 3600 / EVERY_S + 1


def test_the_number_of_remembered_kinds_is_limited(flood):
    for index in range(3 * _KINDS):
        flood.log(f"a message with its values in it: {index}")
    assert len(flood.filter._kinds) <= _KINDS


@pytest.mark.parametrize(("level", "expected"), [("info", BURST), ("debug", 3 * BURST)])
def test_the_filter_is_installed_except_at_debug_level(level, expected):
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

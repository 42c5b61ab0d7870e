import io
import json
import logging
import os
import sys

import pytest

from service.system import logs


@pytest.fixture
def stream():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


def test_json_logs_are_one_object_per_line(stream):
    logs.configure("json", "info", stream)
    logging.getLogger("service.x").warning("update %d\nof %s", 3, "m", extra={"update": 3, "path": os})
    logging.getLogger("service.x").debug("not logged")
    [line] = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found.pop("path").startswith("<module 'os'")
    assert found == {"level": "warning", "logger": "service.x", "message": "update 3\nof m", "update": 3}


def test_json_contains_the_traceback(stream):
    logs.configure("json", "info", stream)
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("service.x").exception("outside")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: inside")


def test_plain_text_stays_on_one_line_and_escapes_control_characters(stream):
    logs.configure("human", "info", stream)
    logging.getLogger("service.x").error("dropped %s", "a\n\x1b[2J.pth", extra={"model": "m"})
    [line] = stream.getvalue().splitlines()
    assert line.endswith(r"error   dropped a\n\x1b[2J.pth model=m")


def test_a_second_call_replaces_the_first(stream):
    logs.configure("human", "error", io.StringIO())
    logs.configure("auto", "debug", stream)  # no terminal: JSON
    logging.getLogger("service.x").debug("logged once")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["logged once"]


def test_a_terminal_gets_plain_text(stream):
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen, os.fdopen(follower, "w") as terminal:
        logs.configure("auto", "info", terminal)
        logging.getLogger("service.x").info("hello")
        assert screen.read(1000).rstrip().endswith(b"info    hello")


def test_logs_go_to_stderr(stream, capsys):
    logs.configure("human", "info")
    logging.getLogger("service.x").info("hello")
    assert capsys.readouterr().err.endswith("hello\n")
    assert sys.stderr is not None

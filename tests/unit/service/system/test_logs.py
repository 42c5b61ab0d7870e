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


def test_json_is_one_object_a_line(stream):
    logs.configure("json", "info", stream)
    logging.getLogger("service.x").warning("update %d\nof %s", 3, "m", extra={"update": 3, "path": os})
    logging.getLogger("service.x").debug("not told")
    [line] = stream.getvalue().splitlines()
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found.pop("path").startswith("<module 'os'")
    assert found == {"level": "warning", "logger": "service.x", "message": "update 3\nof m", "update": 3}


def test_json_holds_the_traceback(stream):
    logs.configure("json", "info", stream)
    try:
        raise ValueError("inside")
    except ValueError:
        logging.getLogger("service.x").exception("outside")
    [line] = stream.getvalue().splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: inside")


def test_lines_for_people_stay_one_line_and_do_not_drive_the_terminal(stream):
    logs.configure("human", "info", stream)
    logging.getLogger("service.x").error("dropped %s", "a\n\x1b[2J.pth", extra={"model": "m"})
    [line] = stream.getvalue().splitlines()
    assert line.endswith(r"error   dropped a\n\x1b[2J.pth model=m")


def test_a_second_call_replaces_the_first(stream):
    logs.configure("human", "error", io.StringIO())
    logs.configure("auto", "debug", stream)  # no terminal: JSON
    logging.getLogger("service.x").debug("told once")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["told once"]


def test_a_terminal_gets_lines_for_people(stream):
    leader, follower = os.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen, os.fdopen(follower, "w") as terminal:
        logs.configure("auto", "info", terminal)
        logging.getLogger("service.x").info("hello")
        assert screen.read(1000).rstrip().endswith(b"info    hello")


def test_stderr_is_where_it_goes(stream, capsys):
    logs.configure("human", "info")
    logging.getLogger("service.x").info("hello")
    assert capsys.readouterr().err.endswith("hello\n")
    assert sys.stderr is not None

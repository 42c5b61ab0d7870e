import io
import json
import logging
import os
import subprocess
import sys

import pytest

from service.system import logs
from tests.support.repository import ROOT
from tests.support.small_disk import missing, small_disk


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


WRITER = """
import logging, sys
from service.system import logs
logs.configure("human", "debug")
for line in sys.stdin:
    for number in range(200):
        logging.getLogger("edged").info("%s %d", line.strip(), number)
    print(flush=True)
"""


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_a_log_on_a_full_disk_stops_nobody_and_goes_on_once_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as disk, (disk.path / "log").open("wb") as log:
        command = [sys.executable, "-c", WRITER]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
        with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
            for line, change in (("before", disk.fill), ("during", disk.clear), ("after", process.stdin.close)):
                process.stdin.write(f"{line}\n")
                process.stdin.flush()
                assert process.stdout.readline() == "\n"
                change()
        assert process.returncode == 0
        text = (disk.path / "log").read_text()
    assert (text.count("before"), text.count("after"), "Traceback" in text) == (200, 200, False)
    assert text.count("during") < 200

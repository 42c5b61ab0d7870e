"""The commands against the real daemon."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from edged.version import __version__
from tests.support.daemon import Daemon, edged, running
from tests.support.tasks import Task


@pytest.fixture(scope="module")
def daemon(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("commands"), task.calibration) as daemon:
        yield daemon


def test_from_submission_to_rollback(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    code, update = edged(daemon, "submit", task.first, "--model", "digits", "--wait")
    assert (code, update["state"], update["generation"]) == (0, "COMMITTED", 1)

    bad = tmp_path / "bad.pt"
    bad.write_bytes(b"")
    code, update = edged(daemon, "submit", bad, "--model", "digits", "--wait")
    assert (code, update["state"], update["code"]) == (3, "REJECTED", "checkpoint")

    code, answer = edged(daemon, "rollback", "digits")
    assert (code, answer["code"]) == (4, "not_ready")
    assert "no generation to go back to" in answer["error"]

    code, update = edged(daemon, "submit", task.second, "--model", "digits", "--wait")
    assert (code, update["generation"]) == (0, 2)
    assert edged(daemon, "rollback", "digits") == (0, {"model": "digits", "from": 2, "to": 1})

    code, status = edged(daemon, "status")
    assert (code, status["ready"]) == (0, True)
    assert status["models"][0]["generation"] == 1
    code, history = edged(daemon, "history", "digits")
    assert [(u["generation"], u["state"]) for u in history["updates"]] == [(2, "ROLLED_BACK"), (1, "COMMITTED")]
    (refused,) = history["unpublished"]
    assert (refused["file_name"], refused["state"], refused["code"]) == ("bad.pt", "REJECTED", "checkpoint")
    code, answer = edged(daemon, "rollback", "digit")
    assert (code, answer["error"]) == (2, "no model 'digit'; did you mean 'digits'? configured: digits")


def test_a_rollback_to_a_chosen_generation(daemon: Daemon, task: Task, tmp_path: Path) -> None:
    for name in ("third.pt", "fourth.pt"):
        torch.save(torch.load(task.first), tmp_path / name)  # the name is part of the file
        daemon.put_live(tmp_path / name)
    assert daemon.generation() == 4
    assert edged(daemon, "rollback", "digits", "--to", "2") == (0, {"model": "digits", "from": 4, "to": 2})
    assert daemon.generation() == 2
    newest = daemon.updates()[0]
    assert (newest["state"], newest["code"]) == ("ROLLED_BACK", "rollback")
    assert newest["reason"] == "rolled back to generation 2: on request"

    code, answer = edged(daemon, "rollback", "digits", "--to", "7")
    assert (code, answer["error"]) == (2, "model 'digits' has no generation 7; kept on the disk: 2, 3, 4")
    code, answer = edged(daemon, "rollback", "digits", "--to", "2")
    assert (code, answer["error"]) == (4, "model 'digits' is at generation 2 already")
    weights = daemon.state / "models" / "digits" / "gen" / "3" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, answer = edged(daemon, "rollback", "digits", "--to", "3")
    assert (code, answer["code"], "its manifest says" in answer["error"]) == (3, "artifact", True)
    assert edged(daemon, "pin", "digits")[0] == 0
    code, answer = edged(daemon, "rollback", "digits", "--to", "4")
    assert (code, answer["code"]) == (4, "pinned")
    assert edged(daemon, "unpin", "digits")[0] == 0
    for body in (b"[]", b"{", b'{"too": 1}', b'{"to": "1"}', b'{"to": true}', b'{"to": 0}'):
        assert daemon.post("/edged/v1/models/digits/rollback", content=body).status_code == 400, body
    assert daemon.generation() == 2
    assert daemon.post("/edged/v1/models/digits/rollback", json={"to": 4}).json()["to"] == 4
    assert daemon.post("/edged/v1/models/digits/rollback", json={"to": None}).json()["to"] == 2


def test_the_log_of_the_daemon(daemon: Daemon, task: Task) -> None:
    first = daemon.log.read_text().splitlines()[0]
    for named in (
        f"edged {__version__} starts: config {daemon.folder / 'edged.yaml'}",
        "models digits",
        "address http://",
    ):
        assert named in first
    assert f"state_dir {daemon.state}, drop_dir {daemon.state / 'drop'}" in first

    code, found = edged(daemon, "logs", "--lines", "2000")
    lines = found["lines"]
    assert code == 0
    assert f" {lines[0]['message']}" in first
    assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
    update = next(update for update in daemon.updates() if update["file_name"] == "bad.pt")
    code, found = edged(daemon, "logs", "digits", "--update", update["id"])
    assert any(f"update {update['id']} of digits (bad.pt) rejected" in line["message"] for line in found["lines"])
    assert all(line in lines for line in found["lines"])
    later = daemon.get(f"/edged/v1/logs?after={lines[-3]['number']}").json()
    assert [line["number"] for line in later["lines"]][:2] == [lines[-2]["number"], lines[-1]["number"]]

    assert edged(daemon, "logs", "digit")[1]["error"] == "no model 'digit'; did you mean 'digits'? configured: digits"
    assert daemon.get("/edged/v1/logs?after=-1").status_code == 400
    with daemon.tcp() as client:
        assert client.get("/edged/v1/logs").status_code == 403


def test_the_status_can_be_watched(daemon: Daemon, tmp_path: Path) -> None:
    # A test run in the background ignores SIGINT, and so would its children.
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program += "; from service.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "status", "digits", "--watch"]
    config = daemon.folder / "edged.yaml"
    with subprocess.Popen([*command, "--config", config], stdout=PIPE, stderr=PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        try:
            assert watching.stdout.readline().endswith(f"model digits: serving generation {daemon.generation()}\n")
            junk = tmp_path / "junk.pt"
            junk.write_bytes(b"no checkpoint")
            daemon.drop(junk)
            line = ""
            while "REJECTED" not in line:
                line = watching.stdout.readline()
                assert re.search(r"Z update \d+ of digits \(junk\.pt\): ", line), line
            watching.send_signal(signal.SIGINT)
            assert (watching.wait(60), watching.stderr.read()) == (130, "edged: interrupted\n")
        finally:
            watching.kill()


def test_nobody_there(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    code, answer = edged(daemon, "status")
    assert (code, answer["code"]) == (69, "unavailable")


def test_gc_without_the_daemon_and_a_refused_file_is_still_known(daemon: Daemon, tmp_path: Path) -> None:
    daemon.config["rejected"] = {"keep": 0}
    daemon.write_config()
    (rejected,) = [path.name for path in (daemon.state / "rejected").iterdir() if not (path / "file").stat().st_size]
    code, answer = edged(daemon, "gc")
    assert (code, answer["skipped"]) == (0, None)
    assert f"rejected/{rejected}" in [entry["path"] for entry in answer["removed"]]
    assert not list((daemon.state / "rejected").iterdir())
    daemon.start()
    bad = tmp_path / "again.pt"
    bad.write_bytes(b"")
    code, update = edged(daemon, "submit", bad, "--model", "digits", "--wait")
    assert (code, update["sha256"]) == (3, rejected)
    assert "the same file was rejected before" in update["reason"]
    assert daemon.stop() == 0

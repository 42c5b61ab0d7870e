from __future__ import annotations

import io
import json
import time
from typing import Any

import pytest

from edged.errors import UnavailableError, UsageError
from service.cli.watch import Changes, watch
from tests.support.commands import call
from tests.support.fake_daemon import fake_daemon


def status(generation: int | None = None, *updates: dict[str, Any], **more: Any) -> dict[str, Any]:
    model = {"name": "shelf", "ready": generation is not None, "generation": generation}
    return {"ready": True, "drop_dir": "/srv/drop", "models": [model], "updates": list(updates), **more}


def update(state: str, stage: str | None = None, done: int = 0) -> dict[str, Any]:
    progress = None if stage is None else {"stage": stage, "done": done, "total": 21}
    return {"id": 7, "model": "shelf", "file_name": "best.pt", "state": state, "progress": progress}


def ended(number: int) -> dict[str, Any]:
    assert number == 7
    return update("COMMITTED", "probation")


def test_an_update_that_begins_and_ends_between_two_looks_is_told() -> None:
    changes = Changes(ended)
    old, new = {**update("FAILED"), "id": 6}, {**update("REJECTED"), "code": "checkpoint", "reason": "no checkpoint"}
    assert len(list(changes.of(status(1, recent=[old])))) == 1  # the model
    (line,) = changes.of(status(1, recent=[new, old]))
    assert line.startswith("update 7 of shelf (best.pt): REJECTED")
    assert list(changes.of(status(1, recent=[new, old]))) == []


def test_one_that_is_seen_open_is_told_once() -> None:
    changes = Changes(ended)
    assert list(changes.of(status(1)))
    assert list(changes.of(status(1, update("LOADED", "quantize", 1), recent=[update("LOADED")])))
    assert list(changes.of(status(1, recent=[update("COMMITTED")]))) == ["update 7 of shelf (best.pt): COMMITTED"]
    assert list(changes.of(status(1, recent=[update("COMMITTED")]))) == []


def test_a_line_for_each_change() -> None:
    changes = Changes(ended)
    name = "update 7 of shelf (best.pt)"
    unclaimed = [{"path": "drop/x.gif", "kind": "file", "reason": "no checkpoint", "since": 1.0}]
    for answer, lines in (
        (status(), ["model shelf: not serving; drop a checkpoint into /srv/drop/shelf/"]),
        (status(), []),
        (status(None, update("DROPPED")), ["model shelf: not serving", f"{name}: DROPPED"]),
        (status(None, update("LOADED", "quantize", 1)), [f"{name}: quantize"]),
        (status(None, update("LOADED", "quantize", 2)), []),
        (status(None, update("CLAIMED")), []),  # for a moment between two stages
        (status(1, update("LIVE")), ["model shelf: serving generation 1", f"{name}: LIVE"]),
        (status(1), [f"{name}: COMMITTED"]),
        (status(1, unclaimed=unclaimed), ["drop/x.gif: not taken: no checkpoint"]),
        (status(1), ["drop/x.gif: gone"]),
    ):
        assert list(changes.of(answer)) == lines


def test_an_update_that_waits_says_for_what() -> None:
    name, row = "update 7 of shelf (best.pt)", {"update": 7, "state": "QUEUED", "waiting_for": "update 5 of cam"}
    changes = Changes(ended)
    for answer, text in (
        (status(1, update("CLAIMED")), "CLAIMED, until it is its turn and a worker has started"),
        (status(1, update("CLAIMED"), queue=[row]), "waits for update 5 of cam"),
        (status(1, update("CLAIMED", "start"), queue=[{**row, "state": "CLAIMED", "waiting_for": None}]), "start"),
    ):
        assert list(changes.of(answer))[-1] == f"{name}: {text}"


def test_an_update_that_the_journal_has_forgotten_has_ended() -> None:
    def forgotten(number: int) -> dict[str, Any]:
        raise UsageError(f"update {number} not found")

    changes = Changes(forgotten)
    assert list(changes.of(status(1, update("LIVE"))))[1:] == ["update 7 of shelf (best.pt): LIVE"]
    assert list(changes.of(status(1))) == ["update 7 of shelf (best.pt): ended; update 7 not found"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class EndedError(Exception):
    """The script of a test has come to its end, as by Ctrl-C."""


def watched(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *answers: dict[str, Any] | Exception) -> list[str]:
    """What is written for answers, without waiting between them."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    script = iter([*answers, EndedError()])

    def fetch() -> dict[str, Any]:
        answer = next(script)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(EndedError):
        watch(fetch, ended, stream, as_json=False)
    return stream.getvalue().splitlines()


def test_off_a_terminal_each_change_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = UnavailableError("no daemon answers at /s")
    lines = watched(io.StringIO(), monkeypatch, status(1), status(1), gone, gone, status(2))
    assert [line.partition("Z ")[2] for line in lines] == [
        "model shelf: serving generation 1",
        "no daemon answers at /s; waiting for it",
        "model shelf: serving generation 2",
    ]


def test_a_terminal_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = "\n".join(watched(Terminal(), monkeypatch, status(1), status(2)))
    frames = screen.split("\x1b[H\x1b[2J")[1:]
    assert [("shelf  serving  1" in frame, "shelf  serving  2" in frame) for frame in frames] == [
        (True, False),
        (False, True),
    ]
    assert all("Ctrl-C ends" in frame for frame in frames)


def test_ctrl_c_ends_the_command(capsys, monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with fake_daemon(tmp_path / "s") as script:
        script.answer("GET /edged/v1/updates?limit=50", {"updates": []})
        script.answer("GET /edged/v1/status", status(1))
        code, out, err = call(capsys, "status", "--watch", "--json", "--socket", str(tmp_path / "s"))
        assert (code, json.loads(out.splitlines()[0])["models"][0]["generation"]) == (130, 1)
        assert err == "edged: interrupted\n"
        code, out, _ = call(capsys, "status", "shelf", "--watch", "--socket", str(tmp_path / "s"))
        assert (code, out.partition("Z ")[2]) == (130, "model shelf: serving generation 1\n")
    assert call(capsys, "status", "--watch", "--socket", str(tmp_path / "none"))[0] == 69

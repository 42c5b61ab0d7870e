from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import UsageError
from service.cli.logs import from_journal, journal_command, parse_since
from tests.support.commands import call
from tests.support.fake_daemon import fake_daemon

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def line(number: int, message: str) -> dict[str, object]:
    return {"number": number, "time": f"2026-01-01T00:00:0{number}.000Z", "level": "info", "message": message}


def answer(*lines: dict[str, object], run: str = "1", last: int = 3) -> dict[str, object]:
    return {"run": run, "last": last, "oldest": "2026-01-01T00:00:01.000Z", "lines": list(lines)}


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with fake_daemon(tmp_path / "s") as script:
        monkeypatch.setenv("EDGED_SOCKET", str(tmp_path / "s"))
        yield script


def test_the_lines_of_the_daemon(capsys, daemon) -> None:
    daemon.answer("GET /edged/v1/logs", answer(line(1, "ready"), line(2, "update 1 of m is committed")))
    code, out, err = call(capsys, "logs")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "2026-01-01T00:00:01.000Z info    ready",
        "2026-01-01T00:00:02.000Z info    update 1 of m is committed",
    ]
    code, out, _ = call(capsys, "logs", "m/x", "--update", "7", "--lines", "5", "--json")
    assert (code, len(json.loads(out)["lines"])) == (0, 2)
    assert daemon.asked == ["GET /edged/v1/logs?limit=200", "GET /edged/v1/logs?model=m%2Fx&update=7&limit=5"]


def test_following_goes_on_after_the_last_line_and_after_a_restart(capsys, daemon) -> None:
    def end() -> None:
        raise ConnectionError  # the daemon is gone

    daemon.answer(
        "GET /edged/v1/logs",
        answer(line(3, "one")),
        answer(line(4, "two"), last=4),
        answer(run="2", last=1),
        answer(line(1, "started anew"), run="2", last=1),
        end,
    )
    code, out, err = call(capsys, "logs", "--follow")
    assert [text[33:] for text in out.splitlines()] == ["one", "two", "started anew"]
    assert daemon.asked[1:4] == [
        "GET /edged/v1/logs?after=3",
        "GET /edged/v1/logs?after=4",
        "GET /edged/v1/logs?",
    ]
    assert (code, "no edged daemon" in err or "no daemon answers" in err) == (69, True)


def test_what_the_daemon_keeps_no_more_is_said(capsys, daemon) -> None:
    daemon.answer("GET /edged/v1/logs", answer(line(1, "ready")))
    _, _, err = call(capsys, "logs", "--since", "2025-12-31T00:00Z")
    assert "the daemon keeps its last lines only, here since 2026-01-01T00:00:01.000Z; older ones: " in err
    _, _, err = call(capsys, "logs", "--since", "2026-01-02T00:00Z")
    assert err == ""


def test_without_a_daemon_it_says_where_the_log_goes(capsys, tmp_path) -> None:
    code, _, err = call(capsys, "logs", "--socket", str(tmp_path / "none"))
    assert (code, "its log went to the stderr of `edged run`" in err) == (69, True)


def test_without_a_daemon_the_journal_of_the_unit_is_read(capsys, tmp_path, monkeypatch) -> None:
    """With programs in place of systemd's, which print what those print."""
    own = json.dumps({"time": "T", "level": "warning", "message": "update 3 of m waits: 81 C", "logger": "x"})
    entries = [
        {"MESSAGE": "Started edged.", "__REALTIME_TIMESTAMP": "1767225600000000"},
        {"MESSAGE": own, "__REALTIME_TIMESTAMP": "1767225601000000"},
        {"MESSAGE": [111, 107, 255], "__REALTIME_TIMESTAMP": "1767225602000000"},
    ]
    (tmp_path / "entries").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + "no JSON\n")
    script = tmp_path / "journalctl"
    script.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\ncat {tmp_path}/entries\n')
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho loaded\n")
    for name in ("journalctl", "systemctl"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EDGED_SOCKET", str(tmp_path / "none"))
    code, out, err = call(capsys, "logs")
    assert (code, err) == (0, "edged: no daemon answers; these are the lines of edged.service in the journal\n")
    assert out.splitlines() == [
        "2026-01-01T00:00:00.000Z info    Started edged.",
        "T warning update 3 of m waits: 81 C",
        "2026-01-01T00:00:02.000Z info    ok\ufffd",
    ]
    assert Path(tmp_path, "asked").read_text() == ("--unit edged.service --no-pager --output json --lines 200\n")
    code, out, _ = call(capsys, "logs", "m", "--update", "3", "--follow")
    assert out.splitlines() == ["T warning update 3 of m waits: 81 C"]
    assert Path(tmp_path, "asked").read_text().endswith(" --follow\n")


def test_the_command_is_a_list_of_arguments() -> None:
    assert journal_command(NOW, 10, follow=True)[-3:] == ["--since", "@1767225600", "--follow"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("10 min", 600), ("2h", 7200), ("1d", 86400), ("1.5s", 1.5), ("2025-12-31T23:00Z", 3600)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_since(text, NOW) == NOW - seconds


@pytest.mark.parametrize("text", ["", "soon", "10", "10 weeks", "2026-13-01"])
def test_what_is_no_time_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--since has value"):
        parse_since(text, NOW)


@given(st.lists(st.text()))
def test_any_line_of_a_journal_can_be_read(entries: list[str]) -> None:
    assert len(list(from_journal(entries))) <= len(entries)


@given(st.text())
def test_any_text_is_a_time_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert isinstance(parse_since(text, NOW), float)

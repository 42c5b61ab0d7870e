"""`edged logs`: the last lines of the daemon's log, from the daemon itself, or from the journal when none answers."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlencode

from edged.errors import UnavailableError, UsageError
from service.cli.output import print_json
from service.client import DaemonClient
from service.config.locate import find_socket
from service.units import iso_time

JSON = dict[str, Any]

UNIT = "edged.service"
_EVERY_S = 0.5
_COMMAND_S = 10.0
_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)\s*(s|m|min|h|d)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def logs(options: Namespace) -> int:
    """Show the last lines of the log (`edged logs [MODEL]`)."""
    since = None if options.since is None else parse_since(options.since, time.time())
    client = DaemonClient(find_socket(options.socket, options.config))
    try:
        answer = _ask(client, options, since, options.lines)
    except UnavailableError as unavailable:
        if options.socket or not unit_exists():
            raise UnavailableError(
                f"{unavailable}; its log went to the stderr of `edged run`: to its terminal, or to the program that"
                " started it"
            ) from None
        return _show_journal(options, since)
    _say_what_is_missing(answer, since)
    _write(options, answer["lines"])
    while options.follow:
        time.sleep(_EVERY_S)
        newer = _ask(client, options, since, None, answer["last"])
        if newer["run"] != answer["run"]:  # the daemon was started anew and counts from 1
            newer = _ask(client, options, since, None)
        answer = newer
        _write(options, answer["lines"])
    return 0


def parse_since(text: str, now: float) -> float:
    """Return the time that "10m", "2 h", "2026-01-31" or "2026-01-31T12:30" means, in seconds since 1970.

    Args:
        text: A time span back from now in s, m, h or d, or a time; without a zone it is local.
        now: Seconds since 1970.

    Raises:
        UsageError: It is neither.
    """
    if (span := _SPAN.fullmatch(text.strip())) is not None:
        return now - float(span[1]) * _SECONDS[span[2]]
    try:
        return datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"--since has value {text!r:.80}; write for example 10m, 2h, 1d or 2026-01-31T12:30") from None


def unit_exists() -> bool:
    """Return whether systemd runs here and knows edged.service."""
    command = ["systemctl", "show", "--property", "LoadState", "--value", UNIT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=True)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return False
    return done.stdout.strip() == "loaded" and shutil.which("journalctl") is not None


def journal_command(since: float | None, lines: int, *, follow: bool) -> list[str]:
    """Return the command that prints the unit's lines in the journal, as the daemon wrote them."""
    command = ["journalctl", "--unit", UNIT, "--no-pager", "--output", "json", "--lines", str(lines)]
    if since is not None:
        command += ["--since", f"@{since:.0f}"]
    return [*command, "--follow"] if follow else command


def from_journal(entries: Iterable[str]) -> Iterator[JSON]:
    """Read lines of `journalctl --output json`; yield "time", "level" and "message" of each."""
    for entry in entries:
        try:
            data = json.loads(entry)
            text, at = data["MESSAGE"], int(data["__REALTIME_TIMESTAMP"]) / 1e6
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(text, list):  # bytes that are no UTF-8 text
            text = bytes(text).decode(errors="replace")
        line = {"time": iso_time(at), "level": "info", "message": str(text)}
        try:
            own = json.loads(line["message"])
            line |= {key: str(own[key]) for key in ("time", "level", "message")}
        except (ValueError, KeyError, TypeError):  # of systemd itself, or plain text
            pass
        yield line


def _ask(client: DaemonClient, options: Namespace, since: float | None, limit: int | None, after: int = 0) -> JSON:
    query = {
        "model": options.model,
        "update": options.update,
        "since": None if since is None else max(0, int(since)),
        "limit": limit,
        "after": after or None,
    }
    return client.get(f"/edged/v1/logs?{urlencode({key: value for key, value in query.items() if value is not None})}")


def _show_journal(options: Namespace, since: float | None) -> int:
    from service.system.log_ring import about

    sys.stderr.write(f"edged: no daemon answers; these are the lines of {UNIT} in the journal\n")
    filtered = options.model is not None or options.update is not None
    command = journal_command(since, 100_000 if filtered else options.lines, follow=options.follow)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - no shell, own arguments
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        found = from_journal(process.stdout)
        if not options.follow:
            lines = list(found)
            kept = [lines[i] for i in about([line["message"] for line in lines], options.model, options.update)]
            _write(options, kept[-options.lines :])
        else:
            for line in found:
                _write(options, [line] if list(about([line["message"]], options.model, options.update)) else [])
    return process.returncode


def _say_what_is_missing(answer: JSON, since: float | None) -> None:
    """Say on stderr that the lines begin later than was asked for."""
    oldest = answer["oldest"]
    if since is not None and oldest is not None and iso_time(since) < oldest:
        where = f"`journalctl --unit {UNIT}`" if unit_exists() else "where the stderr of `edged run` goes"
        sys.stderr.write(f"edged: the daemon keeps its last lines only, here since {oldest}; older ones: {where}\n")


def _write(options: Namespace, lines: list[JSON]) -> None:
    if options.json and not options.follow:
        print_json({"lines": lines})
        return
    for line in lines:
        if options.json:
            print_json(line)
        else:
            sys.stdout.write(f"{line['time']} {line['level']:7} {line['message']}\n")
    sys.stdout.flush()

"""What the commands do that need no torch. Imports stay inside: each command pays only for itself."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from edged.errors import NotReadyError, UnavailableError, UsageError
from service.client import DaemonClient
from service.config.locate import find_config, find_own_config, find_socket


def check_config(options: Namespace) -> int:
    """`edged check-config`: every mistake with its line, or what the file says."""
    from service.config.load import InvalidConfigError, load_config

    path = find_config(options.config)
    try:
        config = load_config(path)
    except InvalidConfigError as error:
        if options.json:
            problems = [problem.to_dict() for problem in error.problems]
            _print_json({"ok": False, "config": str(path), "problems": problems, "code": error.code})
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    models = [model.name for model in config.models]
    result = {"ok": True, "config": str(path), "models": models, "drop_dir": str(config.drop), "problems": []}
    _print(options, result, lambda _: f"{path} is valid: {len(models)} model(s): {', '.join(models)}")
    return 0


def doctor(options: Namespace) -> int:
    """`edged doctor`: the exit code says what kind of fault would keep edged from working."""
    from service.doctor import diagnose, exit_code

    found = diagnose(options.config)
    code = exit_code(found)

    def text(result: dict[str, Any]) -> str:
        from service.cli import render

        return render.checks(result["checks"])

    _print(options, {"ok": code == 0, "checks": [check.to_dict() for check in found]}, text)
    return code


def submit(options: Namespace) -> int:
    """`edged submit`: the exit code says how it ended, with --wait."""
    from pathlib import Path

    from service.cli import submit as submission

    if not options.wait and (options.timeout is not None or options.until_end):
        raise UsageError("--timeout and --until-end only mean something with --wait; add it")
    client = _client(options)
    submitted = submission.submit(client, Path(options.file), options.model)
    if not options.wait:
        _print(
            options, submitted, lambda r: f"dropped {r['file_name']} for {r['model']}; follow it with `edged status`"
        )
        return 0
    update = submission.wait(client, submitted, options.timeout, _progress_line(options), until_end=options.until_end)

    def text(result: dict[str, Any]) -> str:
        from service.cli import render

        return render.outcome(result)

    _print(options, update, text)
    return submission.exit_code(update)


def status(options: Namespace) -> int:
    """`edged status [MODEL]`."""
    answer = _client(options).get("/edged/v1/status")

    def text(result: dict[str, Any]) -> str:
        from service.cli import render

        return render.status(result)

    if options.model is not None:
        known = {model["name"]: model for model in answer["models"]}
        if options.model not in known:
            raise UsageError(f"no model {options.model!r}; configured: {', '.join(known) or 'none'}")
        answer["models"] = [known[options.model]]
        answer["updates"] = [update for update in answer["updates"] if update["model"] == options.model]
    _print(options, answer, text)
    if options.model is not None and not answer["models"][0]["ready"]:
        raise NotReadyError(f"model {options.model!r} is not in service")
    return 0


def history(options: Namespace) -> int:
    """`edged history [MODEL]`."""
    from urllib.parse import quote

    from service.cli import render

    client = _client(options)
    if options.model is None:
        answer = client.get("/edged/v1/updates?limit=100")
        _print(options, answer, lambda r: render.updates(r["updates"]) if r["updates"] else "no updates yet")
    else:
        answer = client.get(f"/edged/v1/models/{quote(options.model, safe='')}/history")
        _print(options, answer, render.history)
    return 0


def administer(options: Namespace) -> int:
    """`edged rollback|pin|unpin|pause|resume MODEL`."""
    from urllib.parse import quote

    from service.cli import render

    answer = _client(options).post(f"/edged/v1/models/{quote(options.model, safe='')}/{options.command}")
    _print(options, answer, render.rollback if options.command == "rollback" else render.hold)
    return 0


def collect_garbage(options: Namespace) -> int:
    """`edged gc`: through the daemon; where none runs, here."""
    from service.cli import render

    try:
        answer = _client(options).post(f"/edged/v1/gc?dry_run={'true' if options.dry_run else 'false'}")
    except UnavailableError:
        if (path := find_own_config(options.socket, options.config)) is None:
            raise
        from service.config.load import load_config
        from service.storage.garbage import collect_without_daemon

        answer = collect_without_daemon(load_config(path), options.dry_run)
    _print(options, answer, render.garbage)
    return 0


def _client(options: Namespace) -> DaemonClient:
    return DaemonClient(find_socket(options.socket, options.config))


def _progress_line(options: Namespace) -> Callable[[dict[str, Any]], None]:
    """Shows on a terminal how far an update has come, in one line that overwrites itself."""
    if options.json or not sys.stderr.isatty():
        return lambda update: None

    from service.journal.states import State

    def show(update: dict[str, Any]) -> None:
        progress = update.get("progress") or {}
        share = f" {progress['done']}/{progress['total']}" if progress.get("total") else ""
        ended = State(update["state"]) in (State.COMMITTED, State.REJECTED, State.FAILED, State.DEFERRED)
        line = f"update {update['id']}: {update['state']} {progress.get('stage', '')}{share}"
        sys.stderr.write(f"\r\x1b[K{'' if ended else line}")
        sys.stderr.flush()

    return show


def _print(options: Namespace, result: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> None:
    if options.json:
        _print_json(result)
    else:
        sys.stdout.write(text(result) + "\n")


def _print_json(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")

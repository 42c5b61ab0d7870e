"""The commands that need no torch. Imports stay inside the functions: each command pays only for itself."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from edged.errors import NotReadyError, UnavailableError, UsageError
from edged.spelling import names_to_choose
from service.cli.output import print_json, print_result, print_text
from service.client import DaemonClient
from service.config.locate import find_config, find_own_config, find_socket

_RECENT = 50  # updates that may begin and end between two looks of a watched status


def run(options: Namespace) -> int:
    """Run the daemon until a signal stops it (`edged run`)."""
    from service.app import run as run_daemon

    return run_daemon(find_config(options.config))


def check_config(options: Namespace) -> int:
    """Check a config file and list every mistake with its line (`edged check-config`)."""
    from service.config.load import MAX_PROBLEMS, InvalidConfigError, load_config
    from service.doctor.images import find_images
    from service.doctor.labels import problem_of_labels

    if options.file is not None and options.config is not None:
        raise UsageError("give the config file once: as FILE or with --config")
    path = find_config(options.file or options.config)
    try:
        images = None if options.skip_images else lambda folder: find_images(folder).problem
        config = load_config(path, images, problem_of_labels)
    except InvalidConfigError as error:
        if options.json:
            problems = [problem.to_dict() for problem in error.problems[:MAX_PROBLEMS]]
            more = {"more": len(error.problems) - len(problems)} if len(error.problems) > len(problems) else {}
            print_json({"ok": False, "config": str(path), "problems": problems, **more, "code": error.code})
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    models = [model.name for model in config.models]
    result = {"ok": True, "config": str(path), "models": models, "drop_dir": str(config.drop_folder), "problems": []}
    print_result(options, result, lambda _: f"{path} is valid: {len(models)} model(s): {', '.join(models)}")
    return 0


def doctor(options: Namespace) -> int:
    """Check this machine (`edged doctor`); the exit code names the kind of the worst fault."""
    from service.cli import render
    from service.doctor import diagnose, exit_code

    found = []
    for check in diagnose(options.config):
        found.append(check)
        if not options.json:  # at once: some checks take seconds
            print_text(render.check(check.to_dict()))
    code = exit_code(found)
    if options.json:
        print_json({"ok": code == 0, "checks": [check.to_dict() for check in found]})
    return code


def submit(options: Namespace) -> int:
    """Copy a checkpoint into a drop folder (`edged submit`); with --wait, the exit code says how it ended."""
    from pathlib import Path

    from service.cli import submit as submission
    from service.cli.wait_progress import WaitProgress

    if not options.wait and (options.timeout is not None or options.until_end):
        raise UsageError("--timeout and --until-end need --wait; add it")
    client = _client(options)
    progress = WaitProgress(sys.stderr)
    submitted = submission.submit(client, Path(options.file), options.model)
    if not options.wait:
        print_result(
            options, submitted, lambda r: f"dropped {r['file_name']} for {r['model']}; follow it with `edged status`"
        )
        return 0
    progress.begin(submitted)
    try:
        update = submission.wait(client, submitted, options.timeout, progress.show, until_end=options.until_end)
    finally:
        progress.end()

    def text(result: dict[str, Any]) -> str:
        from service.cli import render

        return render.outcome(result)

    print_result(options, update, text)
    return submission.exit_code(update)


def status(options: Namespace) -> int:
    """Show what is live and which updates run (`edged status [MODEL]`)."""
    client = _client(options)
    if options.watch:
        from service.cli.watch import watch

        def update(number: int) -> dict[str, Any]:
            return client.get(f"/edged/v1/updates/{number}")

        def status() -> dict[str, Any]:
            rows = client.get(f"/edged/v1/updates?limit={_RECENT}")["updates"]
            recent = [row for row in rows if options.model in (None, row["model"])]
            return {**_status_of(client, options.model), "recent": recent}

        watch(status, update, sys.stdout, as_json=options.json)
    answer = _status_of(client, options.model)

    def text(result: dict[str, Any]) -> str:
        from service.cli import render

        return render.status(result)

    print_result(options, answer, text)
    if options.model is not None and not answer["models"][0]["ready"]:
        raise NotReadyError(f"model {options.model!r} is not in service")
    return 0


def _status_of(client: DaemonClient, model: str | None) -> dict[str, Any]:
    """Return the status of the daemon, or the part of it that is about a model."""
    answer = client.get("/edged/v1/status")
    if model is not None:
        known = {each["name"]: each for each in answer["models"]}
        if model not in known:
            raise UsageError(f"no model {model!r}; {names_to_choose(model, known, 'configured:')}")
        answer["models"] = [known[model]]
        for key in ("updates", "queue"):
            if key in answer:
                answer[key] = [row for row in answer[key] if row["model"] == model]
        if "unclaimed" in answer:
            answer["unclaimed"] = [entry for entry in answer["unclaimed"] if f"/{model}/" in str(entry.get("path"))]
    return answer


def history(options: Namespace) -> int:
    """List updates, or the generations of a model (`edged history [MODEL]`)."""
    from urllib.parse import quote

    from service.cli import render

    client = _client(options)
    if options.model is None:
        answer = client.get("/edged/v1/updates?limit=100")
        print_result(options, answer, lambda r: render.updates(r["updates"]) if r["updates"] else "no updates yet")
    else:
        answer = client.get(f"/edged/v1/models/{quote(options.model, safe='')}/history")
        print_result(options, answer, render.history)
    return 0


def administer(options: Namespace) -> int:
    """Carry out an operator's action (`edged pin|unpin|pause|resume MODEL`)."""
    from urllib.parse import quote

    from service.cli import render

    answer = _client(options).post(f"/edged/v1/models/{quote(options.model, safe='')}/{options.name}")
    print_result(options, answer, render.hold)
    return 0


def rollback(options: Namespace) -> int:
    """Put another generation of a model in service (`edged rollback MODEL [--to N]`)."""
    from urllib.parse import quote

    from service.cli import render

    arguments = None if options.to is None else {"to": options.to}
    answer = _client(options).post(f"/edged/v1/models/{quote(options.model, safe='')}/rollback", arguments)
    print_result(options, answer, render.rollback)
    return 0


def act_on_update(options: Namespace) -> int:
    """Carry out an operator's action on an update (`edged retry|cancel UPDATE`)."""
    from service.cli import render

    answer = _client(options).post(f"/edged/v1/updates/{options.update}/{options.name}")
    print_result(options, answer, render.retry if options.name == "retry" else render.cancel)
    return 0


def collect_garbage(options: Namespace) -> int:
    """Remove files that are no longer needed (`edged gc`), through the daemon where one runs."""
    from service.cli import render

    try:
        answer = _client(options).post(f"/edged/v1/gc?dry_run={'true' if options.dry_run else 'false'}")
    except UnavailableError:
        if (path := find_own_config(options.socket, options.config)) is None:
            raise
        from service.config.load import load_config
        from service.storage.garbage import collect_without_daemon

        answer = collect_without_daemon(load_config(path), options.dry_run)
    print_result(options, answer, render.garbage)
    return 0


def _client(options: Namespace) -> DaemonClient:
    return DaemonClient(find_socket(options.socket, options.config))

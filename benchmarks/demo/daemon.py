"""A daemon for demos and measurements, driven through the commands of edged."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.client import DaemonClient
from service.config.locate import find_socket
from service.system.processes import die_with_parent

EDGED = str(Path(sys.executable).with_name("edged"))
START_S, STOP_S, UPDATE_S, POLL_S = 60, 60, 1200, 0.1


@contextmanager
def daemon(config: Path, *, remove: bool = True) -> Iterator[str]:
    """Run a daemon and yield its address; stop it at the end, and remove its folder unless it has failed.

    The daemon ends with this process, also if that is killed.

    Args:
        config: Config file of the daemon, in a folder of its own.
        remove: Whether the folder is removed at the end.
    """
    process = start(config, functools.partial(die_with_parent, os.getpid()))
    failed = True
    try:
        yield wait_until_ready(config, process)
        failed = False
    except KeyboardInterrupt:
        failed = False
        raise
    finally:
        process.terminate()
        code = process.wait(STOP_S)
        if failed:
            print(f"the log is {log_of(config)}", file=sys.stderr)
        elif remove:
            shutil.rmtree(config.parent)
    print(f"the daemon drained and stopped with exit code {code}")


def start(config: Path, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    """Start a daemon that logs to edged.log next to its config.

    Args:
        config: Config file of the daemon.
        before: Called in the new process before it runs edged.
    """
    with log_of(config).open("ab") as log:
        return subprocess.Popen(
            [EDGED, "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C goes to the demo, which stops the daemon
            preexec_fn=before,
        )


def wait_until_ready(config: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until a daemon serves and return its address; exit if it does not."""
    deadline = time.monotonic() + START_S
    while (status := command("status", "--config", str(config), check=False)) is None or not status.get("ready"):
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the daemon did not start: {log_of(config).read_text()[-2000:]}")
        time.sleep(POLL_S)
    return str(status["address"])


def log_of(config: Path) -> Path:
    """Return the path of the log of the daemon with this config."""
    return config.parent / "edged.log"


def submit(
    config: Path,
    model: str,
    file: Path,
    expected: str = "COMMITTED",
    show: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Submit a file, wait for the end of its update and return it; exit if its state is not the expected one.

    Args:
        config: Config file of the daemon.
        model: Model that the file is for.
        file: Checkpoint.
        expected: State that the update must end in.
        show: Called with the update now and then while it runs.
    """
    client = DaemonClient(find_socket(None, str(config)))
    arguments = [EDGED, "submit", str(file), "--model", model, "--wait", "--config", str(config), "--json"]
    deadline = time.monotonic() + UPDATE_S
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, errors = process.communicate(timeout=POLL_S)
                break
            if time.monotonic() > deadline:
                process.kill()
            for update in client.get(f"/edged/v1/updates?model={model}&limit=1")["updates"]:
                if update["file_name"] == file.name:
                    show(update)
    update = parsed(output)
    if update is None or update.get("state") != expected:
        sys.exit(f"{file.name} should have become {expected}, but: {update or errors}")
    show(update)
    return update


def command(*arguments: str, check: bool = True) -> dict[str, Any] | None:
    """Run an edged command with --json and return its JSON object, or None if it printed none."""
    done = subprocess.run([EDGED, *arguments, "--json"], capture_output=True, text=True, timeout=UPDATE_S)
    if check and done.returncode:
        sys.exit(done.stderr)
    return parsed(done.stdout)


def parsed(output: str) -> dict[str, Any] | None:
    """Return the JSON object that a command printed, or None if it printed none."""
    try:
        result = json.loads(output)
    except ValueError:
        return None
    return result if isinstance(result, dict) else None


def ask(address: str, model: str, encoded: list[str]) -> dict[str, Any]:
    """Send base64-encoded images to a model and return the response."""
    tensor = {
        "name": "image",
        "shape": [len(encoded)],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": encoded,
    }
    request = urllib.request.Request(  # noqa: S310 - the daemon of this program
        f"{address}/v2/models/{model}/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
    return answer


def table(title: str, rows: dict[str, str]) -> None:
    """Print a title and rows of names with values."""
    print(title)
    for name, value in rows.items():
        print(f"    {name:16} {value}")

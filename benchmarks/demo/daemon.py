"""A daemon for demos and measurements, driven through the commands of edged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EDGED = str(Path(sys.executable).with_name("edged"))
START_S, UPDATE_S = 60, 1200


@contextmanager
def daemon(config: Path, keep: bool) -> Iterator[str]:
    """Run a daemon and yield its address; stop it and remove its folder at the end, unless `keep` is set."""
    log = (config.parent / "edged.log").open("wb")
    process = subprocess.Popen([EDGED, "run", "--config", str(config)], stderr=log, start_new_session=True)
    finished = False
    try:
        deadline = time.monotonic() + START_S
        while (status := command("status", "--config", str(config), check=False)) is None or not status.get("ready"):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the daemon did not start: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.1)
        yield status["address"]
        finished = True
    finally:
        if not (keep and finished):
            process.terminate()
            code = process.wait(60)
            log.close()
            if finished:
                shutil.rmtree(config.parent)
                print(f"daemon   drained and stopped with exit code {code}")
            else:
                print(f"the log is {log.name}", file=sys.stderr)


def submit(config: Path, model: str, file: Path, expected: str = "COMMITTED") -> dict[str, Any]:
    """Submit a file, wait for the end of its update and return it; exit if its state is not the expected one."""
    update = command("submit", str(file), "--model", model, "--wait", "--config", str(config), check=False)
    if update is None or update.get("state") != expected:
        sys.exit(f"{file.name} should have become {expected}, but: {update}")
    return update


def command(*arguments: str, check: bool = True) -> dict[str, Any] | None:
    """Run an edged command with --json and return its JSON object, or None if it printed none."""
    done = subprocess.run([EDGED, *arguments, "--json"], capture_output=True, text=True, timeout=UPDATE_S)
    if check and done.returncode:
        sys.exit(done.stderr)
    try:
        result = json.loads(done.stdout)
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

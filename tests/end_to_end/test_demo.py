"""`make demo`: it leaves no daemon behind however it ends, and a kept one can be asked and stopped."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.daemon import eventually
from tests.support.repository import ROOT

DEMO = [sys.executable, "-m", "benchmarks.demo"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: the address of a UNIX socket has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        yield Path(name)


class Demo:
    """A demo in a folder of its own, on a terminal or off one."""

    def __init__(self, folder: Path, *options: str, terminal: bool = False) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k != "EDGED_DATA"}
        environment |= {"TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.output = folder / "output"
        self.terminal, inner = pty.openpty() if terminal else (None, None)
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*DEMO, *options],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL if inner is None else inner,
                stdout=output if inner is None else inner,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=None if inner is None else lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
        if inner is not None:
            os.close(inner)

    def daemons(self) -> list[psutil.Process]:
        """Return the daemons that run in the demo's folder, with their children."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if any(str(self.temporary) in part for part in line) and "run" in line:
                found += [process, *process.children(recursive=True)]
        return found

    def folders(self) -> list[Path]:
        """Return the folders that the demo has left."""
        return list(self.temporary.glob("edged-demo-*"))


ENDINGS: dict[str, Callable[[Demo], None]] = {
    "Ctrl-C": lambda demo: os.killpg(demo.process.pid, signal.SIGINT),
    "kill": lambda demo: demo.process.terminate(),
    "kill -9": lambda demo: demo.process.kill(),
    "the terminal closes": lambda demo: os.close(demo.terminal or -1),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_leaves_no_daemon_behind(ending: str, folder: Path) -> None:
    demo = Demo(folder, terminal=ending == "the terminal closes")
    daemons = eventually(lambda: [p for p in demo.daemons() if p.is_running()], "the demo's daemon starts")
    # With its children: the daemon answers, and has forked what serves.
    eventually(lambda: list(demo.temporary.glob("edged-demo-*/state/edged.sock")), "the daemon listens", 240)
    daemons = demo.daemons() or daemons
    ENDINGS[ending](demo)
    demo.process.wait(60)
    _, alive = psutil.wait_procs(daemons, 60)
    assert alive == []
    assert demo.daemons() == []
    if ending != "kill -9":
        assert demo.process.returncode == 130
        assert demo.folders() == []


@pytest.mark.slow  # two updates; the tests above and those of the demo's modules are quick
def test_a_kept_demo_answers_until_it_is_stopped(folder: Path) -> None:
    demo = Demo(folder, "--keep")
    code = demo.process.wait(280)
    output = demo.output.read_text()
    assert code == 0, output
    assert "digits-2.pth is live as generation 2" in output
    shown = dict(
        re.findall(r"^ {4}(\S.*?\S) {2,}(\S.*)$", output[output.index("The daemon is running:") :], re.MULTILINE)
    )
    assert shown["stop it"] == "make demo-stop"
    assert "edged" in httpx.get(shown["status page"]).text
    answer = subprocess.run(shlex.split(shown["ask it"]), capture_output=True, check=True)
    assert json.loads(answer.stdout)["model_version"] == "2"
    assert b"serving" in subprocess.run(shlex.split(shown["its commands"]), capture_output=True, check=True).stdout

    again = Demo(folder, "--keep")
    assert again.process.wait(100) == 1
    assert "make demo-stop" in again.output.read_text()
    assert len(demo.folders()) == 1

    stop = [sys.executable, "-m", "benchmarks.demo.kept"]
    environment = os.environ | {"TMPDIR": str(demo.temporary), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(stop, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.startswith("stopped the demo's daemon")) == (0, True)
    assert (demo.daemons(), demo.folders(), (folder / "edged-demo.pid").exists()) == ([], [], False)

"""The installed command, as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_daemon import fake_daemon

EDGED = Path(sys.executable).with_name("edged")


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with fake_daemon(tmp_path / "s") as script:
        monkeypatch.setenv("EDGED_SOCKET", str(tmp_path / "s"))
        script.answer("GET /edged/v1/status", {"ready": True, "models": [], "updates": []})
        yield script


def test_a_reader_that_stops_early_is_no_error(daemon):
    updates = [{"id": i, "model": "m", "file_name": "x" * 200, "state": "COMMITTED"} for i in range(2000)]
    daemon.answer("GET /edged/v1/updates", {"updates": updates})
    with subprocess.Popen([EDGED, "history"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_status_imports_little(daemon):
    """That keeps it within the goal of 50 ms; Python alone starts in 15."""
    code = "import sys; from service.cli.main import main; main(['status', '--json']); print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"torch", "numpy", "yaml", "asyncio", "http.client", "ssl", "prometheus_client", "psutil", "logging"}
    assert not heavy & set(modules)


@pytest.mark.parametrize("command", ["status", "history", "pin m", "pause m", "gc"])
def test_a_command_that_asks_the_daemon_imports_only_these_modules(command, tmp_path):
    code = """
import sys
from service.cli.main import main
main(sys.argv[1:])
print(*(name for name in sys.modules if name.split(".")[0] in ("edged", "service")))
"""
    arguments = [*command.split(), "--socket", str(tmp_path / "none")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    modules = set(done.stdout.split()) - {"edged", "service", "service.cli", "service.config", "service.system"}
    asking = {"edged.errors", "edged.version", "edged.spelling", "service.client", "service.config.locate"}
    asking |= {"service.system.pillow_warnings"}
    printing = {"service.cli.output", "service.cli.render", "service.units"}
    assert modules <= asking | printing | {f"service.cli.{name}" for name in ("main", "parser", "commands")}

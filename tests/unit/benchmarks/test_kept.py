"""The daemon that `make demo KEEP=1` leaves running is stopped, and no other process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.demo import kept

SLEEP = "import sys, time; print(flush=True); time.sleep(600)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a demo, in a temporary folder of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "edged-demo-1"
    folder.mkdir()
    (folder / "edged.yaml").touch()
    return folder


@pytest.fixture
def process(request: pytest.FixtureRequest, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs with the last arguments of the daemon, or with those that the test asks for."""
    arguments = getattr(request, "param", ["run", "--config", str(folder / "edged.yaml")])
    with subprocess.Popen([sys.executable, "-c", SLEEP, *arguments], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has its own command line now
        yield process
        process.kill()


def test_stops_the_daemon_and_removes_its_folder(
    tmp_path: Path, folder: Path, process: subprocess.Popen[bytes]
) -> None:
    file = tmp_path / "pid"
    kept.remember(file, process.pid, folder / "edged.yaml")
    found = kept.find(file)
    assert found is not None
    assert (found[0].pid, found[1]) == (process.pid, folder / "edged.yaml")
    assert str(process.pid) in kept.stop(file)
    process.wait(60)
    assert not folder.exists()
    assert not file.exists()


@pytest.mark.parametrize("process", [["run", "--config", "/etc/edged/edged.yaml"], []], indirect=True)
def test_leaves_the_process_of_another_alone(tmp_path: Path, folder: Path, process: subprocess.Popen[bytes]) -> None:
    """The daemon of the demo has ended, and its id is that of another process."""
    file = tmp_path / "pid"
    kept.remember(file, process.pid, folder / "edged.yaml")
    assert kept.find(file) is None
    assert kept.stop(file).startswith("no demo is running; removed")
    assert process.poll() is None
    assert folder.exists()
    assert not file.exists()


@pytest.mark.parametrize("content", [None, "", "17", "x\ny\n", "-1\n/tmp/edged.yaml\n", "1\n/tmp/edged.yaml\n"])
def test_a_file_that_names_no_daemon(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "pid"
    if content is not None:
        file.write_text(content)
    assert kept.find(file) is None
    assert kept.stop(file).startswith("no demo is running")


def test_removes_only_folders_of_the_demo(tmp_path: Path, folder: Path) -> None:
    config = tmp_path / "mine" / "edged.yaml"
    config.parent.mkdir()
    config.touch()
    file = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", SLEEP, "run", "--config", str(config)], stdout=subprocess.PIPE) as own:
        assert own.stdout is not None
        own.stdout.readline()
        kept.remember(file, own.pid, config)
        kept.stop(file)
        own.wait(60)
    assert config.exists()

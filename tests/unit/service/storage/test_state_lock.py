"""The lock of the state folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edged.errors import StateError, UnavailableError
from service.storage.state_lock import lock_state


def test_a_state_folder_can_be_locked_only_once(tmp_path: Path) -> None:
    with lock_state(tmp_path / "lock"), pytest.raises(UnavailableError, match="another edged daemon"):
        lock_state(tmp_path / "lock")
    lock_state(tmp_path / "lock").close()


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from service.storage.state_lock import lock_state\n"
    code += "file = lock_state(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(UnavailableError):
            lock_state(tmp_path / "lock")
        holder.kill()
    lock_state(tmp_path / "lock").close()


def test_a_lock_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        lock_state(tmp_path / "nowhere" / "lock")

"""Locks and sockets."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edged.errors import StateError, UnavailableError
from service.listen import address_of, listen_tcp, listen_unix, lock_state


def test_one_lock_a_folder(tmp_path: Path) -> None:
    with lock_state(tmp_path / "lock"), pytest.raises(UnavailableError, match="another edged daemon"):
        lock_state(tmp_path / "lock")
    lock_state(tmp_path / "lock").close()


def test_the_lock_ends_with_the_process_however_it_ends(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from service.listen import lock_state\n"
    code += "file = lock_state(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(UnavailableError):
            lock_state(tmp_path / "lock")
        holder.kill()
    lock_state(tmp_path / "lock").close()


def test_a_lock_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        lock_state(tmp_path / "nowhere" / "lock")


def test_a_free_port_and_a_taken_one() -> None:
    with listen_tcp("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}: .*serve.port"):
            listen_tcp("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(UnavailableError, match=f"cannot listen on {host}:0"):
        listen_tcp(host, 0)


def test_a_stale_socket_is_replaced_and_nobody_else_may_open_it(tmp_path: Path) -> None:
    path = tmp_path / "edged.sock"
    listen_unix(path).close()
    assert path.exists()
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"too long; set serve\.socket"):
        listen_unix(tmp_path / ("x" * 120))


def test_no_part_of_an_answer_waits_for_another() -> None:
    with listen_tcp("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

"""Listeners that are opened here, and those that systemd passes."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edged.errors import StateError, UnavailableError
from service.system.sockets import address_of, inherited_sockets, listen_tcp, listen_unix


def test_a_tcp_listener_reports_its_address_and_a_port_in_use_is_an_error() -> None:
    with listen_tcp("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UnavailableError, match=f"cannot listen on 127.0.0.1:{port}: .*serve.port"):
            listen_tcp("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_an_error(host: str) -> None:
    with pytest.raises(UnavailableError, match=f"cannot listen on {host}:0"):
        listen_tcp(host, 0)


def test_a_stale_unix_socket_is_replaced_and_only_the_owner_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "edged.sock"
    listen_unix(path).close()
    assert path.exists()
    with listen_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_socket_path_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"too long; set serve\.socket"):
        listen_unix(tmp_path / ("x" * 120))


def test_accepted_connections_have_tcp_nodelay() -> None:
    with listen_tcp("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


PASSED = """
import os, socket, sys
from service.system.sockets import inherited_sockets, is_loopback
kinds = {"tcp": lambda: socket.create_server(("127.0.0.1", 0)), "all": lambda: socket.create_server(("0.0.0.0", 0)),
         "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM), "file": lambda: open(os.devnull),
         "deaf": lambda: socket.socket()}
def unix():
    made = socket.socket(socket.AF_UNIX)
    made.bind(sys.argv[1])
    made.listen()
    return made
kinds["unix"] = unix
made = [kinds[kind]() for kind in sys.argv[2:]]
high = [os.dup(one.fileno()) + 0 for one in made]
high = [os.dup2(fd, 100 + at) for at, fd in enumerate(high)]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": "x", "ELSE": "1"}
found = inherited_sockets(environment)
assert environment == {"ELSE": "1"}
assert not any(os.get_inheritable(one.fileno()) for one in (*found.tcp, *found.unix))
print([(one.fileno(), is_loopback(one)) for one in found.tcp], [one.fileno() for one in found.unix], flush=True)
os._exit(0)
"""


def passed(path: Path, *kinds: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PASSED, path, *kinds], capture_output=True, text=True)


def test_sockets_passed_by_systemd_are_sorted_by_kind(tmp_path: Path) -> None:
    done = passed(tmp_path / "sock", "tcp", "unix", "all")
    assert (done.stdout, done.stderr) == ("[(3, True), (5, False)] [4]\n", "")


@pytest.mark.parametrize(
    ("kind", "message"), [("udp", "ListenStream="), ("deaf", "Accept=no"), ("file", "is not a socket")]
)
def test_a_passed_descriptor_that_does_not_listen_is_an_error(tmp_path: Path, kind: str, message: str) -> None:
    done = passed(tmp_path / "sock", kind)
    assert "ConfigError" in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("environment", [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_FDS": "x"}])
def test_sockets_passed_to_another_process_are_ignored(environment: dict[str, str]) -> None:
    found = inherited_sockets(environment)
    assert (found.tcp, found.unix, environment) == ([], [], {})

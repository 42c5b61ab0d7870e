"""What only one daemon can hold: the state folder's lock, the port, the UNIX socket."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from edged.errors import ConfigError, StateError, UnavailableError

_BACKLOG = 512
_FIRST_INHERITED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


@dataclass
class Inherited:
    """Listening sockets that the service manager holds for us, also while we are restarted.

    Attributes:
        tcp: In the order of the socket unit.
        unix: Likewise.
    """

    tcp: list[socket.socket] = field(default_factory=list)
    unix: list[socket.socket] = field(default_factory=list)


def inherited_sockets(environment: MutableMapping[str, str] | None = None) -> Inherited:
    """Take over what systemd passes, see sd_listen_fds(3); nothing where there is no socket unit.

    Args:
        environment: LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are removed from it; None for our own.

    Raises:
        ConfigError: One of them is no listening stream socket.
    """
    environment = os.environ if environment is None else environment
    owner, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    found = Inherited()
    if owner != str(os.getpid()) or not count.isdecimal():
        return found
    for descriptor in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        try:
            os.set_inheritable(descriptor, False)
            listener = socket.socket(fileno=descriptor)
            listens = listener.type == socket.SOCK_STREAM and listener.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            )
        except OSError as error:
            raise ConfigError(f"descriptor {descriptor} of the socket unit is no socket: {error.strerror}") from None
        if not listens:
            raise ConfigError("the socket unit passes a socket that does not listen; use ListenStream= and Accept=no")
        (found.unix if listener.family == socket.AF_UNIX else found.tcp).append(listener)
    return found


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches a TCP listener."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def lock_state(path: Path) -> IO[bytes]:
    """Lock the state folder for as long as the returned file is open; the kernel releases it even after kill -9.

    Raises:
        UnavailableError: Another daemon has it.
        StateError: The file cannot be written.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror}; make state_dir writable") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UnavailableError(
            f"another edged daemon uses state_dir {path.parent}; stop it or choose another state_dir"
        ) from error
    return file


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        UnavailableError: The port is taken, or the address is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {reason}; stop the program that does or change serve.port"
        ) from error
    # Connections inherit it. asyncio sets it only for sockets that it makes itself, and without it the second part of
    # an answer waits up to 40 ms until the client has acknowledged the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def listen_unix(path: Path) -> socket.socket:
    """A listening UNIX socket that only this user can open. Call it only under the lock: it replaces a stale one.

    Raises:
        StateError: The path cannot be written or is too long.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise StateError(f"cannot make the UNIX socket {path}: {reason}; set serve.socket to another path") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL under which a TCP listener answers."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

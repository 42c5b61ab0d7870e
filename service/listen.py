"""What only one daemon can hold: the state folder's lock, the port, the UNIX socket."""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path
from typing import IO

from edged.errors import StateError, UnavailableError

_BACKLOG = 512


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

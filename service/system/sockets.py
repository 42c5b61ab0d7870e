"""The listening sockets of the daemon, opened here or passed by the service manager."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from edged.errors import ConfigError, StateError, UnavailableError

_BACKLOG = 512
_FIRST_INHERITED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


@dataclass
class Inherited:
    """The listening sockets that the service manager keeps open across restarts of the daemon.

    Attributes:
        tcp: TCP listeners, in the order of the socket unit.
        unix: UNIX listeners, in the order of the socket unit.
    """

    tcp: list[socket.socket] = field(default_factory=list)
    unix: list[socket.socket] = field(default_factory=list)


def inherited_sockets(environment: MutableMapping[str, str] | None = None) -> Inherited:
    """Return the sockets that systemd passes, see sd_listen_fds(3); none without a socket unit.

    Args:
        environment: Environment from which LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are removed; None for that of
            this process.

    Raises:
        ConfigError: A passed descriptor is not a listening stream socket.
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
            raise ConfigError(f"descriptor {descriptor} of the socket unit is not a socket: {error.strerror}") from None
        if not listens:
            raise ConfigError("the socket unit passes a socket that does not listen; use ListenStream= and Accept=no")
        (found.unix if listener.family == socket.AF_UNIX else found.tcp).append(listener)
    return found


def is_loopback(listener: socket.socket) -> bool:
    """Return whether a TCP listener can be reached only from this machine."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def listen_tcp(host: str, port: int, key: str = "serve.port") -> socket.socket:
    """Open a listening TCP socket.

    Args:
        host: Address, or name of an address of this machine.
        port: Port; 0 takes any free one.
        key: Key of the port in the config, for messages.

    Raises:
        UnavailableError: The port is in use, or the address does not belong to this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnavailableError(
            f"cannot listen on {host}:{port}: {reason}; stop the program that uses the port or change {key}"
        ) from error
    # Connections inherit the option. asyncio sets it only for sockets that it creates itself, and without it the second
    # part of a response waits up to 40 ms until the client has acknowledged the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def listen_unix(path: Path) -> socket.socket:
    """Open a listening UNIX socket that only this user can connect to.

    It replaces a stale socket, so call it only while the state folder is locked.

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
        raise StateError(f"cannot create the UNIX socket {path}: {reason}; set serve.socket to another path") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL of a TCP listener."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

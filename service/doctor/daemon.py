"""Check of the daemon: whether one is running, and whether its address is free otherwise."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from edged.errors import AccessError, EdgedError, NotReadyError, UnavailableError
from service.client import DaemonClient
from service.config.load import Config, ServeConfig
from service.doctor.check import FAIL, OK, WARN, Check, Machine

_ANSWER_S = 5.0
_IN_USE, _NO_ADDRESS = errno.EADDRINUSE, errno.EADDRNOTAVAIL


def check_daemon(machine: Machine, config: Config | None) -> Iterator[Check]:
    """Check whether the daemon of this config answers, or if none is running, whether its address is free."""
    if config is None:
        return
    client = DaemonClient(str(config.socket), _ANSWER_S)
    try:
        client.get("/v2/health/ready")
    except NotReadyError as error:
        yield Check("daemon", WARN, f"runs, not ready: {error}", "`edged status` says what it waits for")
    except AccessError as error:
        yield Check("daemon", FAIL, str(error), "run `edged doctor` as the daemon's user", AccessError.exit_code)
    except UnavailableError:
        if (machine.run(["systemctl", "is-active", "edged.socket"]) or "").strip() == "active":
            yield Check("daemon", OK, "none runs; edged.socket holds its port, and starts it with the first request")
        else:
            yield from _addresses(config.serve)
    except EdgedError as error:
        yield Check("daemon", FAIL, f"runs, but answers with an error: {error}", "`edged logs` says why")
    else:
        yield Check("daemon", OK, f"runs and is ready, {config.socket}")


def _addresses(serve: ServeConfig) -> Iterator[Check]:
    yield _address("daemon", serve.host, serve.port, "serve.port")
    if serve.grpc_port is not None:
        yield _address("grpc port", serve.host, serve.grpc_port, "serve.grpc_port")


def _address(name: str, host: str, port: int, key: str) -> Check:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemon does
            listener.bind(address)
    except OSError as error:
        detail = f"none runs, and {host}:{port} cannot be listened on: {error.strerror or error}"
        if error.errno == _IN_USE:
            fix = f"`ss -ltnp 'sport = :{port}'` names the program that does: stop it, or set {key}"
        elif error.errno == errno.EACCES:
            return Check(name, FAIL, detail, f"set {key} to 1024 or more", AccessError.exit_code)
        else:
            fix = "set serve.host to an address of this machine: `ip address`"
        return Check(name, FAIL, detail, fix, UnavailableError.exit_code)
    return Check(name, OK, f"none runs; {host}:{port} is free")

"""Lookup of the config file and of the daemon's socket. Imports little, so that CLI commands start fast."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_CONFIG = "/etc/edged/edged.yaml"
_DEFAULT_STATE = "/var/lib/edged"


def find_config(given: str | None) -> Path:
    """Return the config file: --config, $EDGED_CONFIG or /etc/edged/edged.yaml. The file need not exist."""
    return Path(given or os.environ.get("EDGED_CONFIG") or DEFAULT_CONFIG)


def find_socket(socket: str | None, config: str | None) -> str:
    """Return the daemon's socket.

    The first of these decides: --socket, --config, $EDGED_SOCKET, $EDGED_CONFIG, /etc/edged/edged.yaml, the default.

    Raises:
        ConfigError: The config file cannot be read.
    """
    if socket:
        return socket
    if not config and (known := os.environ.get("EDGED_SOCKET")):
        return known
    path = find_config(config)
    if path == Path(DEFAULT_CONFIG) and not path.exists():
        return f"{_DEFAULT_STATE}/edged.sock"
    return _socket_of(path)


def find_own_config(socket: str | None, config: str | None) -> Path | None:
    """Return the config file that `find_socket` uses; None if the socket was given directly or the file is missing."""
    if socket or (not config and os.environ.get("EDGED_SOCKET")):
        return None
    path = find_config(config)
    return path if path.exists() else None


def _socket_of(path: Path) -> str:
    """Read only the location of the socket: a check of the whole file would be slow, and a client does not need it."""
    import yaml

    from edged.errors import ConfigError
    from edged.json_document import MALFORMED

    try:
        data = yaml.safe_load(path.read_bytes())
        state = data.get("state_dir") or _DEFAULT_STATE
        socket = (data.get("serve") or {}).get("socket") or f"{state}/edged.sock"
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; correct --config or $EDGED_CONFIG") from None
    except (yaml.YAMLError, *MALFORMED):
        raise ConfigError(f"config {path} is not a valid YAML mapping; run `edged check-config {path}`") from None
    return str(path.absolute().parent / socket)

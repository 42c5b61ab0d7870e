"""Where the config file and the daemon's socket are. Light, like service.client."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_CONFIG = "/etc/edged/edged.yaml"
_DEFAULT_STATE = "/var/lib/edged"


def find_config(given: str | None) -> Path:
    """The config file: --config, $EDGED_CONFIG, /etc/edged/edged.yaml. It need not exist."""
    return Path(given or os.environ.get("EDGED_CONFIG") or DEFAULT_CONFIG)


def find_socket(socket: str | None, config: str | None) -> str:
    """The daemon's socket: --socket, --config, $EDGED_SOCKET, $EDGED_CONFIG, /etc/edged/edged.yaml, the default.

    Raises:
        ConfigError: The config file that was asked for cannot be read.
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
    """The config file that `find_socket` went by; None if the socket was given without one, or there is no file."""
    if socket or (not config and os.environ.get("EDGED_SOCKET")):
        return None
    path = find_config(config)
    return path if path.exists() else None


def _socket_of(path: Path) -> str:
    """Only what is needed of the file: whether all of it is right is not our question, and the whole check is slow."""
    import yaml

    from edged.errors import ConfigError

    try:
        data = yaml.safe_load(path.read_bytes())
        state = data.get("state_dir") or _DEFAULT_STATE
        socket = (data.get("serve") or {}).get("socket") or f"{state}/edged.sock"
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}; correct --config or $EDGED_CONFIG") from None
    except (yaml.YAMLError, AttributeError):
        raise ConfigError(f"config {path} is no valid YAML mapping; see `edged check-config --config {path}`") from None
    return str(path.absolute().parent / socket)

"""The service manager's readiness protocol: datagrams to $NOTIFY_SOCKET, see sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time

_STATUS_LENGTH = 300


def sd_notify(state: str) -> bool:
    """Tell systemd, for example "READY=1", "STATUS=serving 2 models" or "WATCHDOG=1".

    Args:
        state: Assignments, one a line.

    Returns:
        Whether a service manager was told; False without one. Never raises: a lost message is no reason to fall over.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # A leading @ stands for the NUL byte of Linux' abstract namespace.
    target = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(target)
        return sender.send(state.encode()) > 0
    return False


def watchdog_interval_s() -> float | None:
    """Seconds between two "WATCHDOG=1": half of what the service manager allows us; None if it does not watch us."""
    micros = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0 or (owner and owner != str(os.getpid())):
        return None
    return int(micros) / 2e6


def reloading() -> None:
    """Tell systemd that the config is being taken over; "READY=1" ends it. Type=notify-reload needs the time."""
    sd_notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


class StatusLine:
    """What `systemctl status` shows of the daemon; sent only when it changes.

    Attributes:
        trouble: What hangs; stands before everything else. None if nothing does.
        note: What stays worth knowing, such as a config that was not taken over; None if nothing does.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.note: str | None = None
        self._text = ""
        self._told = ""

    def refresh(self) -> None:
        """Show a changed `trouble` or `note` at once, before the same text as last."""
        self.tell(self._text)

    def tell(self, text: str) -> None:
        """Show `text`.

        Args:
            text: What is going on; made one line, and cut where it gets long.
        """
        self._text = text
        parts = [part for part in (self.trouble, self.note, text) if part]
        line = " ".join("; ".join(parts).split())[:_STATUS_LENGTH]
        if line != self._told:
            self._told = line
            sd_notify(f"STATUS={line}")

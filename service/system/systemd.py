"""The service manager's readiness protocol: datagrams to $NOTIFY_SOCKET, see sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time

_STATUS_LENGTH = 300
_PATIENCE_S = 1.0  # for a message that changes what the service manager does next
_IMPORTANT = ("READY=", "RELOADING=", "STOPPING=")


def sd_notify(state: str) -> bool:
    """Send a notification to systemd, for example "READY=1", "STATUS=serving 2 models" or "WATCHDOG=1".

    It never raises: a lost message must not stop the daemon. Nor does it wait for a service manager that does not read
    its socket, which holds only a few messages: only READY, RELOADING and STOPPING wait, for a second.

    Args:
        state: Assignments, one per line.

    Returns:
        Whether a service manager received the message; False without one.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    # A leading @ stands for the NUL byte of Linux's abstract namespace.
    target = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_PATIENCE_S if state.startswith(_IMPORTANT) else 0.0)
        sender.connect(target)
        return sender.send(state.encode()) > 0
    return False


def watchdog_interval_s() -> float | None:
    """Return the seconds between two "WATCHDOG=1", half of the allowed time; None without a watchdog."""
    micros = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0 or (owner and owner != str(os.getpid())):
        return None
    return int(micros) / 2e6


def reloading() -> None:
    """Notify systemd that a reload has begun; "READY=1" ends it. Type=notify-reload requires the time."""
    sd_notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


class StatusLine:
    """The status line of the daemon in `systemctl status`; sent only when it changes.

    Attributes:
        trouble: Description of the loops that hang, shown first; None if none hangs.
        note: Lasting problem, such as a config that was not reloaded; None without one.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.note: str | None = None
        self._text = ""
        self._sent = ""

    def refresh(self) -> None:
        """Show a changed `trouble` or `note` at once, followed by the last text."""
        self.report(self._text)

    def report(self, text: str) -> None:
        """Show a new text.

        Args:
            text: State of the daemon; joined to one line, and cut off after 300 characters.
        """
        self._text = text
        parts = [part for part in (self.trouble, self.note, text) if part]
        line = " ".join("; ".join(parts).split())[:_STATUS_LENGTH]
        if line != self._sent and sd_notify(f"STATUS={line}"):
            self._sent = line

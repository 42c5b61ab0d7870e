"""The names of this machine, read from its own files: no name server is asked, because one may not answer."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from pathlib import Path

_HOSTS = Path("/etc/hosts")
_RESOLVER = Path("/etc/resolv.conf")
_MULTICAST_DNS = "local"  # the domain in which a machine announces itself
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_MAX_CHARACTERS = 253


def is_host_name(text: str) -> bool:
    """Return whether a text in lower case is a host name, without a port and a final dot."""
    return len(text) <= _MAX_CHARACTERS and _NAME.fullmatch(text) is not None


def own_names(hosts: Path = _HOSTS, resolver: Path = _RESOLVER) -> frozenset[str]:
    """Return the names of this machine, in lower case.

    These are its host name, alone, in the domains in which this machine looks up names and in that of multicast DNS,
    and the names that the system lists for loopback addresses.

    Args:
        hosts: File that lists names of addresses.
        resolver: File that lists the domains.
    """
    full = socket.gethostname().lower().rstrip(".")
    short = full.partition(".")[0]
    names = {full, short, *(f"{short}.{domain}" for domain in (_MULTICAST_DNS, *_domains(resolver)))}
    return frozenset(name for name in (*names, *_loopback_names(hosts)) if is_host_name(name))


def _domains(resolver: Path) -> Iterator[str]:
    for words in _lines(resolver):
        if words[0] in ("search", "domain"):
            yield from (word.lower().strip(".") for word in words[1:])


def _loopback_names(hosts: Path) -> Iterator[str]:
    for words in _lines(hosts):
        try:
            is_own = ipaddress.ip_address(words[0]).is_loopback
        except ValueError:
            continue
        if is_own:
            yield from (word.lower().rstrip(".") for word in words[1:])


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the words of each line; none if the file cannot be read."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if words := line.partition("#")[0].split():
            yield words

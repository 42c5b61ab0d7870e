"""Which sites requests may be meant for, and come from.

A page of another site can make a browser that runs on this machine, or in its network, send requests to the daemon. By
itself it cannot read the answers. But if its own host name resolves to the address of the daemon (DNS rebinding), the
browser takes both for one site. Such requests are known by their Host field: it has a name that is not the daemon's.
An IP address as Host is safe: DNS rebinding needs a name, because an address always leads to the same machine.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.config.sections import ANY_HOST, ServeConfig
from service.http.auth import LOCAL
from service.http.inference_route import is_inference
from service.http.refusals import Refusals
from service.system.host_names import own_names

_LOCALHOST = "localhost"
_READ_EVERY_S = 30.0  # at most: names of this machine may change after its start, with its network
_MOST_KNOWN = 256  # spellings of allowed hosts
# A name or an IPv4 address, or an IPv6 address in brackets; then perhaps a port.
_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([^\[\]:/?#@\s]*))(?::[0-9]{0,5})?")
_PORTS = {"http": 80, "https": 443}


class AllowedHosts:
    """The hosts that requests over TCP may be meant for.

    These are addresses, localhost, the names of this machine, `serve.host` and `serve.hosts`.

    Args:
        serve: Returns the section of the configuration in force.
        names: Returns the names of this machine.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        serve: Callable[[], ServeConfig],
        names: Callable[[], frozenset[str]] = own_names,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._serve = serve
        self._names = names
        self._clock = clock
        self._own: frozenset[str] = frozenset()
        self._read_at = -_READ_EVERY_S
        self._known: set[bytes] = set()
        self._known_for: ServeConfig | None = None

    def allows(self, host: bytes) -> bool:
        """Return whether a request with this value of its Host field may be answered; b"" if it has none."""
        serve = self._serve()
        if serve is not self._known_for:
            self._known.clear()
            self._known_for = serve
        if host in self._known:
            return True
        if not self._is_allowed(host.decode("latin-1")):
            return False
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known.add(host)
        return True

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether a request may come from a page of another site, or comes from one of this daemon.

        Args:
            origin: Value of the request's Origin field.
            host: Value of its Host field.
        """
        configured = self._serve().named_hosts
        if ANY_HOST in configured:
            return True
        try:
            parts = urlsplit(origin)
            port = parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            return False
        if parts.scheme not in _PORTS or not parts.hostname:  # such as "null"
            return False
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        spellings = {f"{name}:{port}"} | ({name} if port == _PORTS[parts.scheme] else set())
        return host.lower() in spellings or _is_listed(parts.hostname, configured)

    def _is_allowed(self, host: str) -> bool:
        serve = self._serve()
        if ANY_HOST in serve.named_hosts or not host:  # browsers always send one
            return True
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = (found[1] or found[2]).lower().rstrip(".")
        if _is_address(name) or name == _LOCALHOST or name.endswith(f".{_LOCALHOST}"):
            return True
        return name == serve.host.lower() or _is_listed(name, serve.named_hosts) or self._is_own(name)

    def _is_own(self, name: str) -> bool:
        if name not in self._own and self._clock() - self._read_at >= _READ_EVERY_S:
            self._own, self._read_at = self._names(), self._clock()
        return name in self._own


def _is_listed(name: str, configured: tuple[str, ...]) -> bool:
    """Return whether a name is one of those configured, or below one that begins with a dot."""
    return any(name == each.lstrip(".") or (each.startswith(".") and name.endswith(each)) for each in configured)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class SameSite:
    """Refuses requests over TCP that pages of other sites make, except for inference.

    Browsers name the site of such a page in the Origin field, and do not do so when somebody follows a link.

    Args:
        app: Application that answers the other requests.
        hosts: The hosts that are allowed.
        refusals: Counts what is refused.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, refusals: Refusals) -> None:
        self._app = app
        self._hosts = hosts
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope.get(LOCAL) or is_inference(scope["path"]):
            await self._app(scope, receive, send)
            return
        host = b"".join(_values(scope, b"host")).decode("latin-1")
        for value in _values(scope, b"origin"):
            origin = value.decode("latin-1")
            if not self._hosts.allows_origin(origin, host):
                self._refusals.note("origin")
                text = f"Origin has value {origin!r:.80}, which is another site; if it may, add its host to serve.hosts"
                await JSONResponse({"error": text}, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _values(scope: Scope, name: bytes) -> Iterator[bytes]:
    return (value for key, value in scope["headers"] if key == name)

"""A transport of httpx for UNIX sockets that closes what it cannot connect.

httpx's own leaves such a socket to the garbage collector, whose warning then fails whichever test runs at that time.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
from pathlib import Path

import httpx


class UnixTransport(httpx.BaseTransport):
    """Send each request over a connection of its own to the UNIX socket at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        timeout_s = request.extensions.get("timeout", {}).get("read")
        with socket.socket(socket.AF_UNIX) as connected, contextlib.closing(http.client.HTTPConnection("unix")) as to:
            connected.settimeout(timeout_s)
            to.sock = connected
            try:
                connected.connect(self._path)
            except OSError as error:
                raise httpx.ConnectError(str(error), request=request) from error
            try:
                return _exchange(to, request)
            except TimeoutError as error:
                raise httpx.ReadTimeout(str(error), request=request) from error
            except http.client.BadStatusLine as error:  # nothing, where the connection was closed
                raise httpx.RemoteProtocolError(str(error), request=request) from error
            except (OSError, http.client.HTTPException) as error:
                raise httpx.ReadError(str(error), request=request) from error


def _exchange(connection: http.client.HTTPConnection, request: httpx.Request) -> httpx.Response:
    assert isinstance(request.stream, httpx.SyncByteStream)
    target = request.url.raw_path.decode("ascii")
    connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in request.headers.raw:
        connection.putheader(name, value)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may answer before it has read all
        connection.endheaders(request.stream, encode_chunked="Transfer-Encoding" in request.headers)
    answer = connection.getresponse()
    return httpx.Response(answer.status, headers=answer.getheaders(), stream=httpx.ByteStream(answer.read()))

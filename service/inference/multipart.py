"""Forms as browsers and `curl -F` send them: multipart/form-data (RFC 7578). Runs in the generation.

The body is in memory already, within `serve.max_body_bytes`, so the parts are views of it.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

from python_multipart import exceptions, multipart

from service.ipc.messages import RequestError

MAX_FIELDS = 32  # of a form, besides its files
_MAX_PADDING = 64  # spaces after a boundary
_MAX_LOOKALIKES = 64  # of a boundary, in the contents of parts
# It reports to its log what is raised here as well.
logging.getLogger(multipart.__name__).setLevel(logging.ERROR)


class Part(NamedTuple):
    """One part of a form.

    Attributes:
        name: Name of its field.
        filename: Name of the file; None if it is no file.
        data: Contents.
    """

    name: str
    filename: str | None
    data: memoryview


def read_parts(content: bytes | memoryview, content_type: str, max_parts: int) -> list[Part]:
    """Split a form into its parts.

    Args:
        content: Body of the request.
        content_type: Its type, with the boundary between the parts.
        max_parts: Most parts.

    Raises:
        RequestError: The form is damaged, is cut off, or has too many parts.
    """
    _, options = multipart.parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(f"Content-Type has value {content_type!r:.80}, without a boundary; leave it to the client")
    data, form = bytes(content), _Form(max_parts)
    _check_boundaries(data, boundary, max_parts)
    try:
        multipart.MultipartParser(boundary, form.callbacks).write(data)
    except exceptions.FormParserError as error:
        raise RequestError(f"the form cannot be read: {error}") from None
    if not form.ended:
        raise RequestError("the form ends before its last boundary; send all of it")
    return form.parts


def _check_boundaries(data: bytes, boundary: bytes, max_parts: int) -> None:
    """Refuse what the parser would read byte by byte: 64 MB of it would take the process half a minute."""
    mark = b"--" + boundary
    if data.count(mark) > max_parts + _MAX_LOOKALIKES:
        raise _too_many(max_parts)
    if re.search(re.escape(mark) + rb"[ \t]{%d}" % _MAX_PADDING, data):
        raise RequestError(f"a boundary of the form is followed by {_MAX_PADDING} spaces or more; send none")


def _too_many(max_parts: int) -> RequestError:
    return RequestError(f"the form has more than {max_parts} parts; send fewer images in a request")


class _Form:
    """Collects the parts that a parser finds."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._header: tuple[bytes, bytes] = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[memoryview] = []

    @property
    def callbacks(self) -> multipart.MultipartCallbacks:
        """What the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": lambda data, start, end: self._pieces.append(memoryview(data)[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise _too_many(self._max_parts)
        self._header, self._headers, self._pieces = (b"", b""), {}, []

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header = self._header[0] + data[start:end], b""

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._header = self._header[0], self._header[1] + data[start:end]

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[name.lower()] = value
        self._header = b"", b""

    def _end(self) -> None:
        kind, options = multipart.parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        if kind != b"form-data" or b"name" not in options:
            raise RequestError(f"part {len(self.parts)} of the form has no Content-Disposition: form-data with a name")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise RequestError(f"Content-Transfer-Encoding has value {_text(encoding)!r:.80}; send the bytes unencoded")
        data = self._pieces[0] if len(self._pieces) == 1 else memoryview(b"".join(self._pieces))
        filename = options.get(b"filename")
        self.parts.append(Part(_text(options[b"name"]), None if filename is None else _text(filename), data))

    def _finish(self) -> None:
        self.ended = True


def _text(data: bytes) -> str:
    return data.decode(errors="replace")

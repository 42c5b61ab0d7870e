"""Forms are split as httpx and browsers join them, and what is no form is refused."""

from __future__ import annotations

import contextlib

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inference.multipart import read_parts
from service.ipc.messages import RequestError

TYPE = "multipart/form-data; boundary=XyZ"
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1)


def form(*parts: str, end: str = "--XyZ--\r\n") -> bytes:
    return "".join([*(f"--XyZ\r\n{part}\r\n" for part in parts), end]).encode()


@given(st.lists(st.tuples(names, st.none() | names, st.binary(max_size=300)), min_size=1, max_size=5))
def test_parts_come_out_as_a_client_puts_them_in(parts: list[tuple[str, str | None, bytes]]) -> None:
    request = httpx.Request("POST", "http://edged", files=[(name, (file, data)) for name, file, data in parts])
    found = read_parts(memoryview(request.read()), request.headers["content-type"], len(parts))
    assert [bytes(part.data) for part in found] == [data for _, _, data in parts]
    for part, (name, file, _) in zip(found, parts, strict=True):
        if not set(name + (file or "")) & set('"\\'):  # which clients escape in different ways
            assert (part.name, part.filename) == (name, file)


@pytest.mark.parametrize("data", ["", "--XyZ", "\r\n--Xy", "a\r\n--XyA\r\n\r\n--", "\r\n", "--", "\r\n--XyZa"])
def test_contents_that_look_like_a_boundary_stay_whole(data: str) -> None:
    body = form(f'Content-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/jpeg\r\n\r\n{data}')
    ((name, filename, found),) = read_parts(body, TYPE, 1)
    assert (name, filename, bytes(found)) == ("image", "a", data.encode())


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", TYPE, "the form ends before its last boundary"),
        (b"nonsense", TYPE, "the form cannot be read: "),
        (form('Content-Disposition: form-data; name="a"\r\n\r\nb', end=""), TYPE, "ends before its last boundary"),
        (form('Content-Disposition: form-data; name="a"\r\n\r\nb'), "multipart/form-data", "without a boundary; leave"),
        (form("Content-Type: image/png\r\n\r\nb"), TYPE, "part 0 of the form has no Content-Disposition: form-data"),
        (form("Content-Disposition: form-data\r\n\r\nb"), TYPE, "part 0 of the form has no"),
        (form("Content-Disposition: attachment; name=a\r\n\r\nb"), TYPE, "part 0 of the form has no"),
        (
            form(*["Content-Disposition: form-data; name=a\r\n\r\nb"] * 4),
            TYPE,
            "has more than 3 parts; send fewer images",
        ),
        (
            form("Content-Disposition: form-data; name=a\r\nContent-Transfer-Encoding: base64\r\n\r\nYg=="),
            TYPE,
            "Content-Transfer-Encoding has value 'base64'; send the bytes unencoded",
        ),
        (form("Content-Disposition: form-data; name=a\r\n\r\n" + "--XyZA" * 99), TYPE, "has more than 3 parts"),
        (form("Content-Disposition: form-data; name=a\r\n\r\n--XyZ" + " " * 99), TYPE, "by 64 spaces or more"),
        (form("a\xff: b\r\n\r\nb"), TYPE, "the form cannot be read: "),
        (form(f"a: {'b' * 100_000}\r\n\r\nb"), TYPE, "the form cannot be read: "),
        (b"--XyZ--", f"multipart/form-data; boundary={'x' * 1000}", "the form cannot be read: "),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_parts(body, content_type, 3)
    assert caught.value.status == 400


@given(st.lists(st.sampled_from([b"--XyZ", b"\r\n", b"--", b"Content-Disposition: form-data; name=a", b"\0", b": "])))
def test_any_bytes_are_a_form_or_are_refused(pieces: list[bytes]) -> None:
    with contextlib.suppress(RequestError):
        assert len(read_parts(b"".join(pieces), TYPE, 3)) <= 3

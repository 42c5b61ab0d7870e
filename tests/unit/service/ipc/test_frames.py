"""Frames between supervisor and generation."""

from __future__ import annotations

import asyncio
import io
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ipc import frames

INTEGERS = st.integers(-(2**63), 2**63 - 1)
HEADERS = st.dictionaries(st.text(max_size=8), st.one_of(INTEGERS, st.text(max_size=20), st.none()), max_size=4)


def blocking(data: bytes) -> Any:
    return frames.read_blocking(io.BytesIO(data))


def streamed(data: bytes) -> Any:
    async def read() -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await frames.read(reader)

    return asyncio.run(read())


@given(HEADERS, st.binary(max_size=300))
def test_a_written_frame_is_read_unchanged(header: dict[str, Any], body: bytes) -> None:
    file = io.BytesIO()
    frames.write_blocking(file, header, body)
    expected = ({**header, "body_bytes": len(body)}, body)
    assert file.getvalue() == frames.head(header, body) + body
    assert blocking(file.getvalue()) == streamed(file.getvalue()) == expected


@pytest.mark.parametrize("read", [blocking, streamed])
def test_the_end_of_the_stream_is_not_an_error(read: Any) -> None:
    assert read(b"") is None


@pytest.mark.parametrize("read", [blocking, streamed])
def test_a_frame_cut_short_anywhere_is_an_error(read: Any) -> None:
    whole = frames.head({"id": 1}, b"12345") + b"12345"
    for length in range(1, len(whole)):
        with pytest.raises(frames.FrameError, match="within a frame"):
            read(whole[:length])


@pytest.mark.parametrize("read", [blocking, streamed])
@pytest.mark.parametrize(
    "text", [b"no json", b"[]", b"{}", b'{"body_bytes": -1}', b'{"body_bytes": "5"}', b"\xff\xfe", b"5"]
)
def test_an_invalid_header_is_an_error(read: Any, text: bytes) -> None:
    with pytest.raises(frames.FrameError, match=r"header|body_bytes"):
        read(len(text).to_bytes(4, "big") + text)


@pytest.mark.parametrize("read", [blocking, streamed])
def test_a_header_that_is_too_large_is_an_error(read: Any) -> None:
    with pytest.raises(frames.FrameError, match="at most"):
        read(b"\xff\xff\xff\xff")


@given(st.lists(st.tuples(HEADERS, st.binary(max_size=40)), max_size=5), st.data())
def test_frames_are_decoded_however_they_arrive(sent: list[tuple[dict[str, Any], bytes]], data: st.DataObject) -> None:
    stream = b"".join(frames.head(header, body) + body for header, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder, found = frames.Decoder(), []
    for start, end in pairwise([0, *cuts, len(stream)]):
        found += decoder.feed(stream[start:end])
    assert found == [({**header, "body_bytes": len(body)}, body) for header, body in sent]
    assert not decoder.is_within_frame


def test_a_decoder_knows_whether_a_frame_has_begun() -> None:
    whole = frames.head({"id": 1}, b"12345") + b"12345"
    for length in range(1, len(whole)):
        decoder = frames.Decoder()
        assert decoder.feed(whole[:length]) == []
        assert decoder.is_within_frame


def test_a_decoder_refuses_damaged_frames() -> None:
    for damaged in (b"\0\0\0\2{}", b"\xff\xff\xff\xff"):
        with pytest.raises(frames.FrameError):
            frames.Decoder().feed(damaged)

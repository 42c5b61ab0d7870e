"""The elements of a BYTES tensor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ipc.elements import pack_elements, unpack_elements
from service.ipc.messages import RequestError


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_packed_elements_are_unpacked_unchanged(elements: list[bytes]) -> None:
    packed = pack_elements(elements)
    assert [bytes(element) for element in unpack_elements(memoryview(packed), len(elements))] == elements
    for length in range(len(packed)):  # a cut anywhere
        with pytest.raises(RequestError, match=r"ends before|only \d+ follow"):
            unpack_elements(memoryview(packed)[:length], len(elements))
    with pytest.raises(RequestError, match="1 bytes follow the last"):
        unpack_elements(memoryview(packed + b"x"), len(elements))


def test_elements_begin_with_their_length() -> None:
    assert pack_elements([b"ab", b""]) == b"\2\0\0\0ab\0\0\0\0"


@given(st.binary(max_size=40), st.integers(0, 6))
def test_arbitrary_bytes_are_unpacked_or_rejected(data: bytes, count: int) -> None:
    try:
        elements = unpack_elements(memoryview(data), count)
    except RequestError:
        return
    assert pack_elements([bytes(element) for element in elements]) == data

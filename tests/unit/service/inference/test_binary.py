"""The codec of the binary tensor data extension."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.inference.binary import NUMBERS, pack_numbers, tensor_data, unpack_numbers
from service.ipc.messages import Body, RequestError


@given(st.sampled_from([*NUMBERS]), st.data())
def test_packed_numbers_are_unpacked_unchanged(datatype: str, data: Any) -> None:
    values = data.draw(hnp.arrays(NUMBERS[datatype], hnp.array_shapes(max_dims=3, min_side=0)))
    packed = pack_numbers(values, datatype)
    assert len(packed) == values.nbytes
    read = unpack_numbers(memoryview(packed), datatype, values.size)
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read.reshape(values.shape), values)


def test_numbers_are_little_endian() -> None:
    assert pack_numbers([1.0, -2.0], "FP32") == bytes.fromhex("0000803f 000000c0")
    assert pack_numbers(np.array([1], ">i8"), "INT64") == b"\1" + bytes(7)


@given(st.binary(max_size=20), st.none() | st.integers())
def test_a_body_is_split_without_loss(content: bytes, length: int | None) -> None:
    body = Body(content, length)
    if length is not None and not 0 <= length <= len(content):
        with pytest.raises(RequestError, match=f"Content-Length is {length}, but the body has {len(content)} bytes"):
            body.split()
    else:
        text, behind = body.split()
        assert (text + bytes(behind), len(text)) == (content, len(content) if length is None else length)


def test_the_binary_size_must_match_the_bytes_in_the_body() -> None:
    assert tensor_data({}, memoryview(b"")) is None
    assert tensor_data({"binary_data_size": 0}, memoryview(b"")) == b""
    assert tensor_data({"binary_data_size": 2}, memoryview(b"ab")) == b"ab"
    for size in (None, 1, 3, -2, 2.0, True, "2", [2]):
        with pytest.raises(RequestError, match="2 bytes follow the JSON"):
            tensor_data({"binary_data_size": size}, memoryview(b"ab"))
    with pytest.raises(RequestError, match="16 values of FP16 take 32"):
        unpack_numbers(memoryview(bytes(31)), "FP16", 16)

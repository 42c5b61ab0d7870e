"""Typed contents of tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.grpc.contents import field_of, fill_contents, pack_contents
from service.grpc.messages import ModelInferRequest
from service.ipc.messages import RequestError

# Written down a second time, with numpy's types.
FIELDS = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "<i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "<u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
}


def contents(**values: Any) -> Any:
    return ModelInferRequest.InferInputTensor(contents=values).contents


@given(st.sampled_from([*FIELDS]), st.data())
def test_numbers_have_the_bytes_that_numpy_gives_them(datatype: str, data: Any) -> None:
    field, dtype = FIELDS[datatype]
    values = data.draw(hnp.arrays(dtype, st.integers(1, 9)))
    packed = pack_contents("x", datatype, contents(**{field: values.tolist()}))
    assert np.array_equal(np.frombuffer(packed, dtype), values, equal_nan=values.dtype.kind == "f")
    back = contents()
    fill_contents(back, datatype, len(values), memoryview(values.tobytes()))
    assert np.array_equal(getattr(back, field), values, equal_nan=values.dtype.kind == "f")


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_elements_come_back(elements: list[bytes]) -> None:
    packed = pack_contents("x", "BYTES", contents(bytes_contents=elements))
    back = contents()
    fill_contents(back, "BYTES", len(elements), memoryview(packed))
    assert list(back.bytes_contents) == elements


@pytest.mark.parametrize(
    ("datatype", "values", "reason"),
    [
        ("UINT8", {"uint_contents": [256]}, "value that is no UINT8"),
        ("INT8", {"int_contents": [-129]}, "value that is no INT8"),
        ("FP32", {"fp64_contents": [1]}, "has fp64_contents; send fp32_contents"),
        ("FP32", {"fp32_contents": [1], "int_contents": [1]}, "has int_contents and fp32_contents; send fp32_contents"),
        ("FP16", {"fp32_contents": [1]}, "datatype 'FP16'; send raw_input_contents"),
        ("", {"fp32_contents": [1]}, "datatype ''; send raw_input_contents"),
    ],
)
def test_what_does_not_fit_is_refused(datatype: str, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=f"^input 'x' .*{reason}"):
        pack_contents("x", datatype, contents(**values))


def test_half_floats_have_no_field() -> None:
    assert field_of("FP16") is None

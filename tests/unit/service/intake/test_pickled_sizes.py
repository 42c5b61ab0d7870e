"""Sizes that a pickle states."""

from __future__ import annotations

import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.intake import pickled_sizes
from service.intake.pickled_sizes import CutOffError, UnknownSizeError, legacy_bytes, storage_bytes

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


def legacy(content: object, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 50)), max_size=6),
    st.integers(2, 5),
    st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans())),
)
def test_the_size_of_a_legacy_file_is_what_its_pickles_state(
    tensors: list[tuple[torch.dtype, int]], protocol: int, beside: dict[str, object]
) -> None:
    content = {"state": [torch.zeros(count, dtype=dtype) for dtype, count in tensors], "beside": [beside, {1, 2}, ()]}
    data = legacy(content, protocol)
    assert legacy_bytes(io.BytesIO(data)) == len(data)


def test_a_pickle_of_something_else_has_no_size() -> None:
    assert legacy_bytes(io.BytesIO(pickle.dumps({"a": 1}))) == 0


def test_a_pickle_that_ends_early_is_cut_off_and_a_damaged_one_unknown() -> None:
    data = legacy({"a": torch.zeros(3)})
    with pytest.raises(CutOffError):
        legacy_bytes(io.BytesIO(data[:100]))
    with pytest.raises(UnknownSizeError):
        storage_bytes(io.BytesIO(b"\x80\x02\xff\xff."))


def test_reading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little")  # BINBYTES8 of a terabyte
    with pytest.raises(UnknownSizeError):
        storage_bytes(io.BytesIO(huge))
    monkeypatch.setattr(pickled_sizes, "_MAX_OPCODES", 5)
    with pytest.raises(UnknownSizeError):
        storage_bytes(io.BytesIO(pickle.dumps(list(range(100)))))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        sizes = storage_bytes(io.BytesIO(b"\x80\x02" + data))
    except (CutOffError, UnknownSizeError):
        return
    assert all(size >= 0 for size in sizes.values())

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edged.errors import ArtifactError, UsageError
from edged.quant import pack as pack_module
from edged.quant.pack import pack, packed_bytes, unpack

ALL_BITS = range(1, 9)


@st.composite
def codes_of(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    bits = draw(st.integers(1, 8))
    values = draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    return torch.tensor(values, dtype=torch.uint8), bits


@given(codes_of())
def test_unpack_undoes_pack(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_bytes(len(codes), bits),)
    assert torch.equal(unpack(packed, bits, len(codes)), codes)


@given(codes_of())
def test_the_stream_is_little_endian_in_bits_and_padded_with_zeros(case: tuple[torch.Tensor, int]) -> None:
    codes, bits = case
    stream = [int(code) >> bit & 1 for code in codes for bit in range(bits)]
    expected = np.packbits(np.array(stream, dtype=np.uint8), bitorder="little")
    assert pack(codes, bits).tolist() == expected.tolist()


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("step", [8, 64])
def test_long_streams_are_packed_in_steps_without_gaps(monkeypatch: pytest.MonkeyPatch, bits: int, step: int) -> None:
    codes = torch.randint(0, 2**bits, (1003,), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    whole = pack(codes, bits)
    monkeypatch.setattr(pack_module, "_STEP", step)
    assert torch.equal(pack(codes, bits), whole)
    assert torch.equal(unpack(whole, bits, 1003), codes)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_shape_and_memory_layout_do_not_matter(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    before = codes.clone()
    assert torch.equal(pack(codes.T, bits), pack(codes.T.contiguous().view(-1), bits))
    assert torch.equal(codes, before)


def test_four_bits_put_the_first_code_low() -> None:
    assert pack(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist() == [0x21, 0x0F]


@pytest.mark.parametrize("bits", [0, 9])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(UsageError, match=f"bits has value {bits}"):
        pack(torch.zeros(1, dtype=torch.uint8), bits)
    with pytest.raises(UsageError, match=f"bits has value {bits}"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


def test_a_code_that_does_not_fit_is_rejected() -> None:
    with pytest.raises(UsageError, match="do not fit 3 bits"):
        pack(torch.tensor([8], dtype=torch.uint8), 3)
    with pytest.raises(UsageError, match=r"dtype torch\.int64"):
        pack(torch.tensor([1]), 3)


def test_a_stream_of_the_wrong_length_is_rejected() -> None:
    with pytest.raises(ArtifactError, match=r"3 codes of 4 bits take 2 bytes, got torch.uint8 \[3\]"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, 3)

"""Dense packing of 1-bit to 8-bit codes into bytes.

Code i occupies bits i * bits .. i * bits + bits - 1 of the stream, lowest bit first; bit k of the stream is bit
k % 8 of byte k // 8 (little-endian bit order). The last byte is padded with zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edged.errors import ArtifactError, UsageError

# Codes per step: bounds the scratch memory (16 bytes per code). A multiple of 8, so that steps end at whole bytes.
_STEP = 1 << 20


def packed_bytes(count: int, bits: int) -> int:
    """Return the number of bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes densely.

    Args:
        codes: Codes, uint8 of any shape, values below 2**bits, packed in C order. Not modified.
        bits: Bits per code, 1..8.

    Returns:
        The packed codes, uint8 [packed_bytes(codes.numel(), bits)].

    Raises:
        UsageError: `bits` is out of range or a code does not fit.
    """
    _check_bits(bits)
    flat = codes.reshape(-1)
    if flat.dtype is not torch.uint8 or (flat.numel() and int(flat.max()) >= 1 << bits):
        raise UsageError(f"codes of dtype {codes.dtype} do not fit {bits} bits; need uint8 below {1 << bits}")
    packed = torch.empty(packed_bytes(flat.numel(), bits), dtype=torch.uint8)
    for start in range(0, flat.numel(), _STEP):
        part = _pack_step(flat[start : start + _STEP], bits)
        offset = start * bits // 8
        packed[offset : offset + part.numel()] = part
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unpack the first `count` codes of a tensor that `pack` returned.

    Args:
        packed: Packed codes, uint8 [packed_bytes(count, bits)]. Not modified.
        bits: Bits per code, 1..8.
        count: Number of codes.

    Returns:
        The codes, uint8 [count].

    Raises:
        ArtifactError: `packed` has another length or dtype.
        UsageError: `bits` is out of range.
    """
    _check_bits(bits)
    if packed.dtype is not torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        raise ArtifactError(
            f"{count} codes of {bits} bits take {packed_bytes(count, bits)} bytes,"
            f" got {packed.dtype} {list(packed.shape)}; the weights are damaged"
        )
    codes = torch.empty(count, dtype=torch.uint8)
    for start in range(0, count, _STEP):
        part = codes[start : start + _STEP]
        offset = start * bits // 8
        stored = packed[offset : offset + packed_bytes(part.numel(), bits)]
        part.copy_(_unpack_step(stored, bits)[: part.numel()])
    return codes


def _pack_step(codes: Tensor, bits: int) -> Tensor:
    """Pack up to _STEP codes: gather each 8 codes in one int64 and split that into `bits` bytes."""
    groups = torch.zeros((codes.numel() + 7) // 8, 8, dtype=torch.int64)
    groups.view(-1)[: codes.numel()] = codes
    words = (groups << (torch.arange(8) * bits)).sum(1, keepdim=True)
    stream = (words >> (torch.arange(bits) * 8)).to(torch.uint8)  # the cast keeps the low 8 bits
    return stream.reshape(-1)[: packed_bytes(codes.numel(), bits)]


def _unpack_step(packed: Tensor, bits: int) -> Tensor:
    """Unpack the bytes of one step; the result may end with up to 7 codes of padding."""
    groups = torch.zeros((packed.numel() + bits - 1) // bits, bits, dtype=torch.int64)
    groups.view(-1)[: packed.numel()] = packed
    words = (groups << (torch.arange(bits) * 8)).sum(1, keepdim=True)
    return ((words >> (torch.arange(8) * bits)) & ((1 << bits) - 1)).to(torch.uint8).reshape(-1)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise UsageError(f"bits has value {bits}; choose 1 to 8")

"""Tensors as an untrusted file describes them, before any memory is spent on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from edged.errors import CheckpointError, UnsafeCheckpointError

MAX_DIMENSIONS = 8

STORAGE_DTYPES: Mapping[str, torch.dtype] = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


@dataclass(frozen=True, eq=False, slots=True)
class StorageRef:
    """A flat run of `numel` values of `dtype` that the container holds under `key`."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class TensorRef:
    """A tensor as the file describes it: a view of `storage`, offset and strides in elements. Checked to lie inside."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements in the stored type."""
        return self.numel * self.storage.dtype.itemsize


def quoted(text: object, limit: int = 80) -> str:
    """`text` on one line, in quotes, cut to `limit` characters; safe for logs whatever the file put there."""
    # A container is named only: a small pickle can hold a list whose text is of astronomical length.
    whole = str(text) if isinstance(text, str | int | Exception) else f"a {type(text).__name__}"
    return ascii(whole if len(whole) <= limit else whole[: limit - 3] + "...")


def non_negative(values: object, limit: int = 1 << 62) -> tuple[int, ...]:
    """`values` as a tuple of at most `MAX_DIMENSIONS` integers in 0..limit.

    Raises:
        CheckpointError: It is anything else.
    """
    if not isinstance(values, list | tuple) or len(values) > MAX_DIMENSIONS:
        raise CheckpointError(f"a tensor's shape is not a list of at most {MAX_DIMENSIONS} integers")
    for value in values:
        if type(value) is not int or not 0 <= value <= limit:
            raise CheckpointError("a tensor's shape, stride or offset is not a non-negative integer")
    return tuple(values)


def tensor_ref(storage: StorageRef, offset: int, shape: Sequence[int], stride: Sequence[int]) -> TensorRef:
    """A `TensorRef` after checking that it lies inside its storage and does not repeat elements to grow.

    Raises:
        CheckpointError: It reaches outside its storage.
        UnsafeCheckpointError: It has more elements than its storage (stride 0: bytes become gigabytes).
    """
    ref = TensorRef(storage, non_negative([offset])[0], non_negative(shape), non_negative(stride))
    if len(ref.shape) != len(ref.stride):
        raise CheckpointError(
            f"a tensor of storage {quoted(storage.key)} has {len(shape)} sizes and {len(stride)} strides"
        )
    if ref.numel > storage.numel:
        raise UnsafeCheckpointError(
            f"a tensor of shape {list(shape)} expands a storage of {storage.numel} values; save it with .contiguous()"
        )
    reach = offset + sum((size - 1) * step for size, step in zip(ref.shape, ref.stride, strict=True)) + 1
    if ref.numel and reach > storage.numel:
        raise CheckpointError(
            f"a tensor reaches value {reach} of storage {quoted(storage.key)}, which has {storage.numel}"
        )
    # The stride of a single element means nothing and may be anything.
    steps = (step if size > 1 else 1 for size, step in zip(ref.shape, ref.stride, strict=True))
    return TensorRef(storage, ref.offset, ref.shape, tuple(steps))

"""Storage of the values that are live at a cut, for every batch of every stream, until the next cut replaces them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edged.atomic import as_state_error
from edged.memory import apart
from edged.models.graph import Values

HALF_MAX = 65504.0


@dataclass(frozen=True)
class _OnDisk:
    """The place of a value in the file, stored channels last as the network computes.

    Attributes:
        offset: Position of the first byte in the file.
        nbytes: Size in bytes.
        shape: Shape of the value.
        dtype: Type of the value.
        device: Device that the value came from and is returned to.
    """

    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Spill:
    """Values in one unlinked temporary file, of which nothing remains however the process ends.

    Args:
        folder: Folder on the filesystem that holds the file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        self._end = 0
        self._free: dict[int, list[int]] = {}  # free offsets by size, because sizes recur in every batch

    def write(self, value: Tensor) -> _OnDisk:
        flat = (value.permute(0, 2, 3, 1) if value.dim() == 4 else value).cpu().contiguous()
        if offsets := self._free.get(flat.nbytes):
            offset = offsets.pop()
        else:
            offset, self._end = self._end, self._end + flat.nbytes
        with as_state_error(self._folder):
            self._file.seek(offset)
            self._file.write(flat.numpy().data)
            self._file.flush()
        return _OnDisk(offset, flat.nbytes, tuple(flat.shape), value.dtype, value.device)

    def read(self, place: _OnDisk) -> Tensor:
        data = bytearray(place.nbytes)
        self._file.seek(place.offset)
        self._file.readinto(data)
        flat = torch.frombuffer(data, dtype=place.dtype).reshape(place.shape).to(place.device)
        return flat.permute(0, 3, 1, 2) if flat.dim() == 4 else flat

    def close(self) -> None:
        self._file.close()

    def free(self, place: _OnDisk) -> None:
        self._free.setdefault(place.nbytes, []).append(place.offset)


class ActivationStore:
    """Values by stream and by the first image of their batch.

    Values are stored as float16, which halves the memory; its rounding error of 0.05 % is far below that of any
    quantized layer. A value beyond the range of float16 keeps its type. Values over the memory budget are stored in a
    file, which is read and written rather than mapped, because mapped pages would count as the process's memory. A
    value is returned on the device that it came from.

    Args:
        memory_budget: Bytes of values that may stay in memory, on the values' own device.
        folder: Folder on the filesystem that holds the other values.
    """

    def __init__(self, memory_budget: int, folder: Path) -> None:
        self._budget = memory_budget
        self._spill = _Spill(folder)
        self._kept: dict[tuple[str, int], dict[str, Tensor | _OnDisk]] = {}
        self._in_memory = 0

    def __enter__(self) -> ActivationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._spill.close()

    def put(self, stream: str, first: int, values: Values) -> None:
        """Replace the values of a batch; a value already stored under the same name is kept.

        Args:
            stream: Name of the stream.
            first: Index of the batch's first image.
            values: Values that are live at the cut, by name. Not modified.

        Raises:
            StateError: The disk is full.
        """
        kept = self._kept.pop((stream, first), {})
        for name in kept.keys() - values.keys():
            self._free(kept.pop(name))
        for name in values.keys() - kept.keys():
            kept[name] = self._keep(_compact(values[name]))
        self._kept[stream, first] = kept

    def get(self, stream: str, first: int, only: str | None = None) -> Values:
        """Return the values of a batch as float32, in new tensors.

        Args:
            stream: Name of the stream.
            first: Index of the batch's first image.
            only: Name of the only value to return; None for all.
        """
        return {
            name: self._spill.read(value).float() if isinstance(value, _OnDisk) else value.to(torch.float32, copy=True)
            for name, value in self._kept[stream, first].items()
            if only in (None, name)
        }

    def discard(self, stream: str, first: int) -> None:
        """Delete the values of a batch if they are stored."""
        for value in self._kept.pop((stream, first), {}).values():
            self._free(value)

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._kept

    def _keep(self, value: Tensor) -> Tensor | _OnDisk:
        if self._in_memory + value.nbytes <= self._budget:
            self._in_memory += value.nbytes
            return apart(value)
        return self._spill.write(value)

    def _free(self, value: Tensor | _OnDisk) -> None:
        if isinstance(value, _OnDisk):
            self._spill.free(value)
        else:
            self._in_memory -= value.nbytes


def _compact(value: Tensor) -> Tensor:
    if value.dtype is torch.float32 and float(value.abs().max()) < HALF_MAX:
        return value.half()
    return value

"""The values that are live at a cut, kept for every batch of every stream until the next cut replaces them."""

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
    """Where a value lies in the file: `nbytes` from `offset`, channels last, which is how the network computes.

    `device` is where it came from and goes back to.
    """

    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class _Spill:
    """Values in one file without a name, so that nothing stays behind however the process ends.

    Args:
        folder: Where there is room.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        self._end = 0
        self._free: dict[int, list[int]] = {}  # offsets by size: sizes recur from batch to batch

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

    They are kept as float16: half the memory, and a rounding error of 0.05 %, far below that of any quantized layer.
    A value that does not fit float16 keeps its own type. What does not fit the memory budget goes to a file, read and
    written whole: mapped pages would count as the process's memory. A value comes back to the device it came from.

    Args:
        memory_budget: Bytes of values that may stay in memory, on the device that they are on.
        folder: Where there is room for the others.
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
        """Replace what is kept for a batch. A value that was there before under the same name is not stored again.

        Raises:
            StateError: The disk is full.
        """
        kept = self._kept.pop((stream, first), {})
        for name in kept.keys() - values.keys():
            self._free(kept.pop(name))
        for name in values.keys() - kept.keys():
            kept[name] = self._keep(_compact(values[name]))
        self._kept[stream, first] = kept

    def get(self, stream: str, first: int) -> Values:
        """The values of a batch as float32, in new tensors."""
        return {
            name: self._spill.read(value).float() if isinstance(value, _OnDisk) else value.to(torch.float32, copy=True)
            for name, value in self._kept[stream, first].items()
        }

    def discard(self, stream: str, first: int) -> None:
        """Forget a batch if it is kept."""
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

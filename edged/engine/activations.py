"""The values that are live at a cut, kept for every batch of every stream until the next cut replaces them."""

from __future__ import annotations

import torch
from torch import Tensor

from edged.models.graph import Values

HALF_MAX = 65504.0


class ActivationStore:
    """Values by stream and batch.

    They are kept as float16: half the memory, and a rounding error of 0.05 %, far below that of any quantized layer.
    A value that does not fit float16 keeps its own type.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, int], Values] = {}

    def put(self, stream: str, batch: int, values: Values) -> None:
        """Replace what is kept for a batch. A value that was there before under the same name is not stored again."""
        kept = self._values.get((stream, batch), {})
        self._values[stream, batch] = {
            name: kept[name] if name in kept else _compact(value) for name, value in values.items()
        }

    def get(self, stream: str, batch: int) -> Values:
        """The values of a batch as float32, in new tensors."""
        return {name: value.to(torch.float32, copy=True) for name, value in self._values[stream, batch].items()}

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self._values

    def nbytes(self) -> int:
        """Bytes in use."""
        return sum(value.nbytes for values in self._values.values() for value in values.values())


def _compact(value: Tensor) -> Tensor:
    if value.dtype is torch.float32 and float(value.abs().max()) < HALF_MAX:
        return value.half()
    return value.clone()

"""A device that is not there: its tensors hold their numbers on the CPU and say that they lie elsewhere.

What would fail on a GPU fails here: an operation on tensors of two devices, as where one of them was made on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy")  # in every build of torch, and without a tensor of its own unless a backend is set up
# What may read one device and write another.
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Elsewhere(Tensor):
    """Tensor on DEVICE."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, numbers.shape, numbers.stride(), numbers.storage_offset(), dtype=numbers.dtype, device=DEVICE
        )
        made.numbers = numbers
        return made

    def __init__(self, numbers: Tensor) -> None:
        pass

    # torch makes these two without asking a mode.
    def tolist(self) -> Any:
        return self.numbers.tolist()

    def new_tensor(self, values: Any) -> Tensor:
        return Elsewhere(self.numbers.new_tensor(values))

    def __repr__(self, **_: object) -> str:
        return f"Elsewhere({self.numbers})"

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise AssertionError(f"{operator} outside of PretendedDevice")


class PretendedDevice(TorchDispatchMode):
    """Make DEVICE usable while the context is active."""

    def __torch_dispatch__(
        self, operator: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
        here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]
        if there and here and operator not in COPIES:
            raise AssertionError(f"{operator} of tensors on {DEVICE} and on {here[0].device} {list(here[0].shape)}")
        target = kwargs.get("device") or (DEVICE if there else None)
        if target != DEVICE and not there:
            return operator(*args, **kwargs)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        known = {id(tensor.numbers): tensor for tensor in there}
        # A tensor of inference mode could not be a view of one that is not.
        with torch.inference_mode(False), torch.no_grad():
            results = operator(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
            return tree_map(_wrapper(known), results) if target == DEVICE else results


def _numbers(value: Any) -> Any:
    return value.numbers if isinstance(value, Elsewhere) else value


def _wrapper(known: Mapping[int, Elsewhere]) -> Callable[[Any], Any]:
    def wrap(value: Any) -> Any:
        # An operation in place gives the tensor that it changed.
        if id(value) in known:
            return known[id(value)]
        return Elsewhere(value) if isinstance(value, Tensor) else value

    return wrap

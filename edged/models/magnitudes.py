"""Find weights that no training leaves: a flipped bit in an exponent makes 1e36 of 0.01."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edged.models.pickle_scan import quoted

LARGEST = 1e15  # of any tensor; the square of a larger number soon exceeds float32
LARGEST_WEIGHT = 100.0  # of the matrices and kernels; larger ones must be like their neighbors
OUTLIER = 1e3  # times as large as all but a thousandth of the others
_SHARE = 1000


def implausible_value(state: Mapping[str, Tensor]) -> str | None:
    """Describe the least plausible value of a network's tensors in one line; None if none is absurd.

    A value is absurd above 1e15. One of a kernel or a matrix is absurd, too, if it is above 100 and over 1,000 times as
    large as 99.9 % of that tensor. In trained networks it is less than 100 times as large as those.

    Args:
        state: Finite tensors by name. Not modified.
    """
    found: list[tuple[float, str]] = []
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        largest = float(max(tensor.max(), -tensor.min()))  # without a copy of the tensor
        usual = _usual(tensor) if tensor.dim() > 1 and LARGEST_WEIGHT < largest <= LARGEST else None
        if largest > LARGEST:
            found.append((largest, f"tensor {quoted(name)} holds the value {_value(tensor):.3g}"))
        elif usual is not None and largest > OUTLIER * usual:
            others = f"99.9 % of its values are within {usual:.3g}"
            found.append((largest, f"tensor {quoted(name)} holds the value {_value(tensor):.3g}, and {others}"))
    if not found:
        return None
    more = f"; so do {len(found) - 1} other tensors" if len(found) > 2 else "; so does another tensor"
    return max(found)[1] + (more if len(found) > 1 else "")


def _usual(tensor: Tensor) -> float | None:
    """Return the bound of all values but the largest thousandth, at least one; None for a single value."""
    count = tensor.numel()
    if count < 2:
        return None
    return float(tensor.detach().flatten().abs().kthvalue(count - max(1, count // _SHARE)).values)


def _value(tensor: Tensor) -> float:
    flat = tensor.detach().flatten()
    return float(flat[torch.stack([flat.argmax(), flat.argmin()])][int(-flat.min() > flat.max())])

"""Bits of each layer under a limit of bytes: the multiple-choice knapsack problem, solved exactly.

Each layer takes one of several widths; costs and bytes of layers add up. Layers are added one after the other, and of
the partial choices only those are kept that no other one beats in both bytes and cost. Most of these are ruled out
early: with a price of lambda a byte, the layers that are left cost at least the sum of min(cost + lambda bytes) less
lambda times the bytes that are left, and a choice whose total cannot get below that of a known solution is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edged.errors import UsageError

MAX_CHOICES = 1 << 14  # partial choices that are kept: bounds time and memory, and networks hardly come near
_PRICES = 200  # bisections of the price of a byte: to the last bit of a float64


@dataclass(frozen=True)
class Option:
    """One width of a layer.

    Attributes:
        bits: The width.
        bytes: Bytes that the layer takes at this width.
        cost: What the width costs in accuracy, in any unit that adds up over layers.
    """

    bits: int
    bytes: int
    cost: float


@dataclass(frozen=True)
class Allocation:
    """A width for each layer.

    Attributes:
        chosen: The option of each layer.
        bytes: Their bytes in all.
        cost: Their cost in all.
        bound: A cost that no choice within the limit gets below: `cost` itself, where the solution is exact.
    """

    chosen: tuple[Option, ...]
    bytes: int
    cost: float
    bound: float


def allocate(layers: Sequence[Sequence[Option]], limit: int) -> Allocation:
    """Choose an option for each layer such that the cost is least and the bytes stay within a limit.

    Args:
        layers: Options of each layer, at least one each, with bytes and finite costs of at least 0.
        limit: Most bytes of all layers together.

    Returns:
        The choice of least cost; of equal ones the one with the fewest bytes.

    Raises:
        UsageError: Even the smallest options exceed the limit.
    """
    smallest = sum(min(option.bytes for option in options) for options in layers)
    if smallest > limit:
        raise UsageError(f"{limit} bytes are too few: the smallest choice takes {smallest}")
    price, known = _price(layers, limit)
    least = [min(option.cost + price * option.bytes for option in options) for options in layers]
    left = [sum(least[index + 1 :]) - price * limit for index in range(len(layers))]
    needed = [sum(min(o.bytes for o in options) for options in layers[index + 1 :]) for index in range(len(layers))]
    used = torch.zeros(1, dtype=torch.int64)
    cost = torch.zeros(1, dtype=torch.float64)
    cut, steps = False, []
    slack = 1e-9 * max(1.0, abs(known))  # rounding must not rule out the best
    for options, rest, needs in zip(layers, left, needed, strict=True):
        used, cost, parent, option = _extended(used, cost, options)
        bound = cost + price * used.double() + rest
        keep = (used + needs <= limit) & (bound <= known + slack)
        used, cost, parent, option, bound = (each[keep] for each in (used, cost, parent, option, bound))
        if len(used) > MAX_CHOICES:
            best, cut = bound.argsort()[:MAX_CHOICES].sort().values, True
            used, cost, parent, option = (each[best] for each in (used, cost, parent, option))
        steps.append((parent, option))
    chosen = _followed_back(layers, steps, int(cost.argmin()))
    total = sum(option.cost for option in chosen)
    bound_of_all = sum(least) - price * limit if cut else total
    return Allocation(chosen, sum(option.bytes for option in chosen), total, min(bound_of_all, total))


def _extended(used: Tensor, cost: Tensor, options: Sequence[Option]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Add a layer to partial choices; return bytes, cost, parent and option of those that no other one beats."""
    count = len(used)
    added = torch.tensor([option.bytes for option in options])
    price = torch.tensor([option.cost for option in options], dtype=torch.float64)
    used, cost = (used[:, None] + added).flatten(), (cost[:, None] + price).flatten()
    parent = torch.arange(count).repeat_interleave(len(options))
    option = torch.arange(len(options)).repeat(count)
    # By bytes, and by cost where these are equal: two stable sorts, the last key first.
    order = cost.argsort(stable=True)
    order = order[used[order].argsort(stable=True)]
    used, cost, parent, option = (each[order] for each in (used, cost, parent, option))
    before = cost.cummin(0).values
    better = torch.ones_like(cost, dtype=torch.bool)
    better[1:] = cost[1:] < before[:-1]
    return used[better], cost[better], parent[better], option[better]


def _followed_back(
    layers: Sequence[Sequence[Option]], steps: Sequence[tuple[Tensor, Tensor]], last: int
) -> tuple[Option, ...]:
    chosen = []
    for options, (parent, option) in zip(reversed(layers), reversed(steps), strict=True):
        chosen.append(options[int(option[last])])
        last = int(parent[last])
    return tuple(reversed(chosen))


def _price(layers: Sequence[Sequence[Option]], limit: int) -> tuple[float, float]:
    """Return the lowest price of a byte at which the cheapest options fit the limit, and the cost of a choice near."""

    def at(price: float) -> list[Option]:
        return [min(options, key=lambda o: (o.cost + price * o.bytes, o.bytes)) for options in layers]

    if _bytes(fit := at(0.0)) <= limit:
        return 0.0, _cost(fit)
    low, high = 0.0, 1.0
    while _bytes(at(high)) > limit:
        high *= 2
    for _ in range(_PRICES):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if _bytes(at(middle)) <= limit else (middle, high)
    return high, _cost(_filled(layers, at(high), limit))


def _filled(layers: Sequence[Sequence[Option]], chosen: list[Option], limit: int) -> list[Option]:
    """Return a choice that takes what is left of the limit, a layer at a time, each time where it gains most."""
    chosen = list(chosen)
    while True:
        left = limit - _bytes(chosen)
        gains = [
            (chosen[index].cost - option.cost, index, option)
            for index, options in enumerate(layers)
            for option in options
            if option.cost < chosen[index].cost and option.bytes - chosen[index].bytes <= left
        ]
        if not gains:
            return chosen
        _, index, option = max(gains, key=lambda gain: gain[0])
        chosen[index] = option


def _bytes(chosen: Sequence[Option]) -> int:
    return sum(option.bytes for option in chosen)


def _cost(chosen: Sequence[Option]) -> float:
    return sum(option.cost for option in chosen)

"""Choice of range policies by measurement: the error at the network's output decides, not that of each value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from edged.execution.graph import Add, Concat, Conv, Linear, Silu
from edged.execution.grids import Range
from edged.execution.histogram import Histogram
from edged.execution.placement import Placement
from edged.execution.ranges import RangePolicy, choose_range

# Kinds of values, and the policies that are tried for each; the first is the one to start from.
_WIDE = (RangePolicy.MINMAX, RangePolicy.PERCENTILE, RangePolicy.MSE)
TRIED: Mapping[str, tuple[RangePolicy, ...]] = {
    "pre-activation": (RangePolicy.SILU, RangePolicy.MINMAX),
    "activation": _WIDE,
    "layer": _WIDE,
    "sum": _WIDE,
    "other": (RangePolicy.MINMAX,),
}

# Few images decide, so a policy must lower the error by a twentieth to take the place of the one before it.
NEEDED = 0.95

Policies = dict[str, RangePolicy]


def kinds_of(placement: Placement) -> dict[str, str]:
    """Return the kind of each of `placement.values`, a key of `TRIED`."""
    readers, producers = placement.graph.readers(), placement.graph.producers()
    kinds = {}
    for name in placement.values:
        node = producers.get(name)
        source = producers.get(node.inputs[0]) if node is not None else None
        if any(isinstance(reader, Silu) for reader in readers[name]):
            kinds[name] = "pre-activation"
        elif isinstance(node, Silu):
            kinds[name] = "activation"
        elif isinstance(node, Add | Concat) or isinstance(source, Add):
            kinds[name] = "sum"
        elif isinstance(node, Conv | Linear) or isinstance(source, Conv | Linear):
            kinds[name] = "layer"
        else:
            kinds[name] = "other"
    return kinds


def first_policies(placement: Placement) -> Policies:
    """Return the policy to start from for each of `placement.values`."""
    return {name: TRIED[kind][0] for name, kind in kinds_of(placement).items()}


def choose_policies(placement: Placement, error: Callable[[Policies, float], float]) -> Policies:
    """Choose the policy of each kind of value, one kind after the other, by the error that it leaves.

    Args:
        placement: The values that are carried as codes.
        error: Returns the error of the network's outputs on held-out images for the policies of all values. At a sum of
            the second argument or more it may stop, because the policies are not taken then.

    Returns:
        The policy of each of `placement.values`. Its error is never above that of `first_policies`.
    """
    kinds = kinds_of(placement)
    chosen = first_policies(placement)
    least = error(chosen, math.inf)
    for kind, policies in TRIED.items():
        if kind not in kinds.values():
            continue
        for policy in policies[1:]:
            tried = {name: policy if kinds[name] == kind else chosen[name] for name in chosen}
            if (found := error(tried, NEEDED * least)) < NEEDED * least:
                chosen, least = tried, found
    return chosen


class Ranges:
    """Ranges of values by policy, each searched once.

    Args:
        histograms: Histogram of each value.
        bits: Bits per code.
    """

    def __init__(self, histograms: Mapping[str, Histogram], bits: int) -> None:
        self._histograms, self._bits = histograms, bits
        self._found: dict[tuple[str, RangePolicy], Range] = {}

    def of(self, policies: Policies) -> dict[str, Range]:
        """Return the range of each value by its policy."""
        for name, policy in set(policies.items()) - self._found.keys():
            self._found[name, policy] = choose_range(self._histograms[name], policy, self._bits)
        return {name: self._found[name, policy] for name, policy in policies.items()}
